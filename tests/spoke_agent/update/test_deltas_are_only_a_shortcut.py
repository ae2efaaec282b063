import numpy as np
import pytest

from model_formats.delta.encode import encode
from model_formats.package import open_package, pack
from model_formats.package.image_layout import ImageLayout
from sync.protocol.messages import DeltaOffer, DesiredModel, ProbationTerms
from tests.samples.model_folder import WEIGHTS, write_model_folder
from tests.spoke_agent.fakes import SIGNATURE, Rig


@pytest.fixture
def pair(tmp_path):
    """A spoke on version 1, and a version 2 that differs in a few bytes."""
    rig = Rig(tmp_path / "spoke")
    rig.install(1)
    old = open_package(rig.store, rig.hub.versions[1]).path(WEIGHTS)
    weights = bytearray(old.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(weights), 50):
        weights[at] ^= 1
    source = write_model_folder(tmp_path / "source", version=2, weights=bytes(weights))
    index = pack(source, tmp_path / "layout")
    layout = ImageLayout(tmp_path / "layout")
    layout.put(SIGNATURE)
    rig.hub.layouts[index] = layout
    rig.hub.versions[2] = index
    target = open_package(layout, index).files[WEIGHTS]
    file = tmp_path / "delta"
    size = encode(old, layout.path(target.digest), file)
    return rig, layout, index, target, f"sha256:{old.name}", file.read_bytes(), size


def follow(rig, index, base, target, delta, size):
    offer = DeltaOffer(base=base, target=target.digest, delta=delta, size=size)
    model = DesiredModel(model="digits", version=2, index=index, probation=ProbationTerms(soak_s=1), deltas=(offer,))
    rig.controller.follow(rig.directive(model))
    rig.settle()


def test_a_delta_spares_most_of_the_bytes(pair):
    rig, layout, index, target, base, delta, size = pair
    follow(rig, index, base, target, layout.put(delta), size)
    assert rig.champion() == 2
    seen = rig.last().evidence
    assert seen.used_delta
    assert target.digest not in rig.hub.fetched
    assert seen.bytes_received < seen.bytes_total / 5


def test_a_delta_that_lies_is_thrown_away_and_the_whole_file_comes(pair):
    rig, layout, index, target, base, delta, _ = pair
    bad = bytearray(delta)
    bad[len(bad) // 2] ^= 0xFF
    digest = layout.put(bytes(bad))
    follow(rig, index, base, target, digest, len(bad))
    assert rig.champion() == 2
    assert not rig.last().evidence.used_delta
    assert rig.hub.fetched[target.digest] == target.size
    assert digest not in rig.store.digests()


def test_an_offer_from_a_base_that_is_not_here_is_passed_over(pair):
    rig, layout, index, target, _, delta, size = pair
    follow(rig, index, "sha256:" + "9" * 64, target, layout.put(delta), size)
    assert rig.champion() == 2
    assert not rig.last().evidence.used_delta

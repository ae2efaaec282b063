"""Random damage anywhere in a bundle: it is refused in words of ours, or it changed nothing that matters."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_formats.core.errors import SpokeshaveError
from model_formats.core.types import digest_of
from sync.sideload.bundle import apply_bundle
from sync.store import MemoryStore
from tests.samples.trust_world import CLINIC, World
from tests.sync.sideload.test_a_bundle_carries_a_whole_update import export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, bytes, Path]:
    world = World(tmp_path_factory.mktemp("world"))
    path = export(world)
    return world, path.read_bytes(), path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.floats(0, 1), st.binary(min_size=1, max_size=64), st.sampled_from(["replace", "insert", "cut"]))
def test_damage_is_refused_in_words(made, tmp_path: Path, where: float, junk: bytes, how: str) -> None:
    world, good, path = made
    at = int(where * min(len(good), 60_000))
    bad = {
        "replace": good[:at] + junk + good[at + len(junk) :],
        "insert": good[:at] + junk + good[at:],
        "cut": good[:at] + good[at + len(junk) :],
    }[how]
    path.write_bytes(bad)
    store = MemoryStore()
    trust = world.spoke(tmp_path.name + str(at), lane="sideload", site="clinic")
    try:
        applied = apply_bundle(path, me=CLINIC, zone="me", store=store, trust=trust)
    except SpokeshaveError:
        return
    for item in applied.bundle.items:
        if item.name.startswith("blobs/"):
            assert digest_of(store.path(item.digest).read_bytes()) == item.digest

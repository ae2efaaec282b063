import json

import numpy as np

from model_formats.delta import apply
from model_formats.delta.plan import DELTA, PlannedDelta, plan_deltas
from model_formats.package import ImageLayout, open_package, pack
from tests.samples.model_folder import WEIGHTS, write_model_folder
from tests.samples.onnx_files import base_tensors, finetuned, write_onnx


def version(folder, number, tensors):
    weights = write_onnx(folder / f"{number}.onnx", tensors).read_bytes()
    return pack(write_model_folder(folder / f"v{number}", version=number, weights=weights), folder / "layout")


def test_a_fine_tune_gets_deltas_from_each_older_version_and_noise_gets_none(tmp_path):
    one = base_tensors()
    two = finetuned(one)
    v1, v2, v3 = (version(tmp_path, n, t) for n, t in ((1, one), (2, two), (3, finetuned(two, seed=2))))
    layout = ImageLayout(tmp_path / "layout")
    planned = plan_deltas(layout, v3, [v2, v1], layout)
    files = {index: open_package(layout, index).files[WEIGHTS] for index in (v1, v2, v3)}
    assert [(d.base, d.target) for d in planned] == [(files[v2].digest, files[v3].digest), (files[v1].digest, files[v3].digest)]
    for delta in planned:
        assert delta.size < 0.5 * delta.target_size
        apply(layout.path(delta.base), layout.path(delta.delta), tmp_path / "out", delta.target)
        (tmp_path / "out").unlink()
    assert not list((tmp_path / "layout").glob("tmp*"))


def described(layout, referrer):
    """What docs/package.md says of a delta: base, target and its size as annotations, the delta as the only layer."""
    manifest = json.loads(layout.path(referrer.digest).read_bytes())
    notes, [blob] = manifest["annotations"], manifest["layers"]
    base, target, size = (notes[f"dev.spokeshave.delta.{name}"] for name in ("base", "target", "target-size"))
    return PlannedDelta(base, target, blob["digest"], blob["size"], int(size))


def test_deltas_are_found_again_among_the_referrers(tmp_path):
    v1, v2 = version(tmp_path, 1, base_tensors()), version(tmp_path, 2, finetuned(base_tensors()))
    layout = ImageLayout(tmp_path / "layout")
    planned = plan_deltas(layout, v2, [v1], layout)
    assert [described(layout, d) for d in layout.referrers(v2, DELTA)] == planned
    assert layout.referrers(v1, DELTA) == []


def test_an_unrelated_version_is_sent_whole(tmp_path):
    noise = np.random.default_rng(5)
    other = {k: noise.integers(-127, 127, v.shape).astype(v.dtype) for k, v in base_tensors().items()}
    v1, v2 = version(tmp_path, 1, base_tensors()), version(tmp_path, 2, other)
    layout = ImageLayout(tmp_path / "layout")
    assert plan_deltas(layout, v2, [v1], layout) == []
    assert not [d for d in layout.referrers(v2) if "delta" in str(d)]


def test_an_unchanged_file_needs_no_delta(tmp_path):
    v1, v2 = version(tmp_path, 1, base_tensors()), version(tmp_path, 2, base_tensors())
    layout = ImageLayout(tmp_path / "layout")
    assert [d for d in plan_deltas(layout, v2, [v1], layout) if d.base == d.target] == []

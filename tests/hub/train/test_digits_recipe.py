from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hub.train.corruptions import blur, image_corruptions, shift, turn
from hub.train.datasets import SITE_ROWS, digits
from hub.train.digits import RECIPE
from hub.train.recipe import Schedule, fit
from hub.train.runner import RecipeUnknown, RunRecord, recipe, train
from hub.train.tracking import Track


def test_shares_are_disjoint_and_cover_all_digits() -> None:
    shares = digits()
    parts = [shares.train, shares.held_out, *shares.sites.values()]
    assert [len(p) for p in parts] == [760, 300, *SITE_ROWS.values()]
    assert sum(map(len, parts)) == 1797
    images = np.concatenate([p.inputs["image"] for p in parts]).reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == 1797
    assert all(len(np.unique(p.labels)) == 10 for p in parts)


def test_shares_have_the_same_digest_every_time_and_others_when_a_value_changes() -> None:
    one, two = digits(), digits()
    assert one.train.digest == two.train.digest
    assert one.train.digest == "sha256:fe37bbc0e9b5f72b5b4a8f3f73364d240e080838f5243c6fbec8a7e7d93cf61a"
    images = one.train.inputs["image"].copy()
    images[0, 0, 0, 0] += 1
    assert replace(one.train, inputs={"image": images}).digest != one.train.digest


def test_a_run_is_tracked_with_all_that_made_it(tmp_path: Path) -> None:
    class Short(type(RECIPE)):  # type: ignore[misc]
        def schedule(self) -> Schedule:
            return Schedule(epochs=3)

    said: list[str] = []
    trained = train(Short(), runs=tmp_path, progress=said.append)
    record = RunRecord.parse((tmp_path / trained.record.run / "run.json").read_bytes())
    assert record == trained.record
    assert record.parameters["epochs"] == 3
    assert record.dataset == digits().train.digest
    assert len(record.epochs) == 3
    assert record.epochs[2]["loss"] < record.epochs[0]["loss"]
    assert 0 < record.metrics["held_out_accuracy"] <= 1
    assert (tmp_path / record.run / "weights.npz").is_file()
    assert sum(line.startswith("epoch") for line in said) == 3


def test_the_same_seed_gives_the_same_weights() -> None:
    import torch

    def weights() -> dict[str, np.ndarray]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            module = fit(RECIPE.module(), RECIPE.data(), Schedule(epochs=1), Track(lambda _: None))
        return {n: t.numpy() for n, t in module.state_dict().items()}

    one, two = weights(), weights()
    assert all(np.array_equal(one[n], two[n]) for n in one)


def test_an_unknown_recipe_is_named() -> None:
    for name in ("nothing", "hub.train.digits:ABSENT", "os:"):
        with pytest.raises(RecipeUnknown, match=name):
            recipe(name)


def test_turning_there_and_back_keeps_the_picture() -> None:
    images = digits().held_out.inputs["image"]
    np.testing.assert_array_equal(turn(images, 0), images)
    np.testing.assert_allclose(turn(images, 90)[:, :, 2, 3], np.rot90(images, 1, axes=(2, 3))[:, :, 2, 3], atol=1e-3)
    np.testing.assert_array_equal(shift(images, 1, 0)[:, :, 1:], images[:, :, :-1])
    np.testing.assert_allclose(blur(np.ones((1, 1, 8, 8), np.float32), 0.9), 1, atol=1e-6)


def test_every_corruption_stays_in_range_and_changes_something() -> None:
    inputs = {"image": digits().held_out.inputs["image"][:20]}
    for family, damage in image_corruptions("image", 0.0, 16.0):
        found = damage(inputs)["image"]
        assert found.dtype == np.float32, family
        assert found.shape == inputs["image"].shape
        assert 0 <= found.min() <= found.max() <= 16
        assert not np.array_equal(found, inputs["image"]), family

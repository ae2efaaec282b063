import numpy as np
import pytest

from hub.train.corruptions import image_corruptions, turn
from hub.train.runner import Trained
from model_formats.build.build import BuildResult
from model_formats.runtimes.select import open_session
from model_formats.statistics.accuracy_estimate import AccuracyEstimate, EstimateWindow, estimate_accuracy, fit_estimate
from model_formats.statistics.calibration import calibrate, confidence


@pytest.fixture(scope="module")
def judge(digits: BuildResult, trained: Trained):  # type: ignore[no-untyped-def]
    """Images to (estimate, true accuracy), on held-out rows."""
    session = open_session(digits.folder / "variants/onnx-int8/model.onnx")
    profile, held = digits.profile, trained.data.held_out

    def of(images: np.ndarray, rows: int = 300) -> tuple[AccuracyEstimate, float]:
        logits, features = session.run({"image": images[:rows]}, ["logits", "features"])
        predicted = logits.argmax(axis=1)
        assert profile.estimate is not None
        window = EstimateWindow(confidence(logits, profile.scores), predicted, features)
        return estimate_accuracy(profile.estimate, window), float((predicted == held.labels[:rows]).mean())

    return of


def test_the_error_on_families_never_seen_is_small_and_said(digits: BuildResult) -> None:
    estimate = digits.profile.estimate
    assert estimate is not None
    assert len(estimate.families) == 8
    assert estimate.error <= 0.10
    assert estimate.interval >= estimate.error


def test_clean_rows_are_estimated_as_good_and_valid(judge, trained: Trained) -> None:  # type: ignore[no-untyped-def]
    found, truth = judge(trained.data.held_out.inputs["image"])
    assert found.valid
    assert found.low <= truth <= found.high


@pytest.mark.parametrize("degrees", [0, 15, 35, -30])
def test_turned_rows_are_estimated_within_the_interval(judge, trained: Trained, degrees: int) -> None:  # type: ignore[no-untyped-def]
    found, truth = judge(turn(trained.data.held_out.inputs["image"], degrees))
    assert found.low <= truth <= found.high


def test_fewer_rows_give_a_wider_interval(judge, trained: Trained) -> None:  # type: ignore[no-untyped-def]
    images = trained.data.held_out.inputs["image"]
    few, many = judge(images, 20)[0], judge(images, 300)[0]
    assert few.high - few.low > many.high - many.low


def test_inverted_pictures_are_not_called_good(judge, trained: Trained) -> None:  # type: ignore[no-untyped-def]
    found, truth = judge(16 - trained.data.held_out.inputs["image"])
    assert truth < 0.5
    assert not found.valid or found.low < 0.7


def test_two_families_are_too_few_to_learn_from() -> None:
    rng = np.random.default_rng(0)
    window = EstimateWindow(rng.random(50), rng.integers(0, 3, 50), rng.normal(size=(50, 4)))
    assert fit_estimate(window, rng.random(50) < 0.9, [("a", window, rng.random(50) < 0.5)] * 2, 3) is None


def test_calibration_rises_and_keeps_the_mean() -> None:
    rng = np.random.default_rng(1)
    raw = rng.random(500)
    correct = rng.random(500) < raw**2
    found = calibrate(raw, correct)
    assert list(found.correct) == sorted(found.correct)
    assert len(found.confidence) <= 32
    assert np.interp(raw, found.confidence, found.correct).mean() == pytest.approx(correct.mean(), abs=0.03)


def test_corruption_families_are_the_ones_named_in_the_estimate(digits: BuildResult) -> None:
    assert digits.profile.estimate is not None
    assert set(digits.profile.estimate.families) == {name for name, _ in image_corruptions("image", 0, 16)}

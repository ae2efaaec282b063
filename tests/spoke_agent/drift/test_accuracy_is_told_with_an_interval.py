from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from model_formats.statistics.accuracy_estimate import EstimateWindow as EstimateWindow
from model_formats.statistics.accuracy_estimate import fit_estimate
from model_formats.statistics.reference_profile import build_profile
from spoke_agent.data.crypto import load_site_key
from spoke_agent.data.store import DataStore, RowBatch
from spoke_agent.drift.estimate import AccuracyEstimator, from_labels, from_rows
from spoke_agent.drift.monitor import WatchedModel
from sync.core.clock import ManualClock
from tests.samples.tabular import CONTRACT, INDEX, MODEL, VERSION, profile, scores, table

WATCHED = WatchedModel(MODEL, VERSION, INDEX)


@pytest.mark.parametrize(("rows", "correct"), [(200, 0), (200, 100), (5000, 4900), (200, 200)])
def test_labels_give_wilsons_interval_in_whole_percent(rows: int, correct: int):
    found = from_labels(rows, correct)
    assert found is not None
    assert found.valid
    assert found.low <= 100 * correct / rows <= found.high
    assert 0 < found.high - found.low <= 15
    assert from_labels(199, 100) is None


def test_rows_unlike_anything_are_said_to_be_beyond_telling():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((600, 8))
    sure = rng.beta(9, 1, 600)
    clean = EstimateWindow(sure, rng.integers(0, 3, 600), features)

    def damaged(strength: float) -> tuple[EstimateWindow, np.ndarray]:
        moved = features + strength * rng.standard_normal(8)
        return EstimateWindow(sure * (1 - 0.2 * strength), clean.predicted, moved), rng.random(600) < 0.95 - 0.3 * strength

    shifted = [(family, *damaged(s)) for family in "abcd" for s in (0.3, 0.8, 1.5)]
    estimate = fit_estimate(clean, rng.random(600) < 0.95, shifted, 3)
    assert estimate is not None
    rows = table(600, rng)
    known = build_profile(CONTRACT, {"x": rows}, {"y": scores(rows, rng)}).replace(estimate=estimate)
    near = from_rows(known, scores(rows, rng), features)
    far = from_rows(known, scores(rows, rng), features + 50)
    assert near is not None
    assert far is not None
    assert near.valid
    assert not far.valid
    assert near.low < near.estimate < near.high or near.estimate in (0, 100)


def test_a_package_without_a_regression_gives_no_number():
    rng = np.random.default_rng(1)
    assert from_rows(profile(), scores(table(300, rng), rng), np.zeros((300, 4))) is None


def test_labels_come_before_the_regression_and_none_of_both_says_nothing(tmp_path: Path):
    clock = ManualClock()
    data = DataStore(tmp_path / "data.db", load_site_key(tmp_path), now=lambda: clock.now().timestamp())
    estimator = AccuracyEstimator(data, clock, lambda _: None)
    x = table(250, np.random.default_rng(2))
    logits = scores(x, np.random.default_rng(3))
    ids = [str(i) for i in range(250)]
    data.append(RowBatch(MODEL, VERSION, INDEX, ids, np.full(250, clock.now().timestamp()), {"x": x}, {"y": logits}))
    batches = list(data.batches(MODEL))
    assert estimator(WATCHED, profile(), batches) is None
    data.label_rows({i: float(v) for i, v in zip(ids, logits.argmax(axis=1), strict=True)})
    found = estimator(WATCHED, profile(), batches)
    assert found is not None
    assert (found.method, found.estimate, found.rows) == ("labels", 100, 200)


@pytest.mark.parametrize(("late", "days"), [(6, 7), (8, 14), (40, 56), (89, 90), (91, None)])
def test_labels_that_come_late_count_for_the_days_they_are_about(tmp_path: Path, late: int, days: int | None):
    clock = ManualClock()
    data = DataStore(tmp_path / "data.db", load_site_key(tmp_path), now=lambda: clock.now().timestamp())
    estimator = AccuracyEstimator(data, clock, lambda _: None)
    x, ids = table(250, np.random.default_rng(2)), [str(i) for i in range(250)]
    logits = scores(x, np.random.default_rng(3))
    data.append(RowBatch(MODEL, VERSION, INDEX, ids, np.full(250, clock.now().timestamp()), {"x": x}, {"y": logits}))
    clock.advance(timedelta(days=late).total_seconds())
    for i, label in zip(ids, logits.argmax(axis=1), strict=True):
        assert data.label(i, float(label))
    found = estimator(WATCHED, profile(), list(data.batches(MODEL)))
    if days is None:
        assert found is None
    else:
        assert found is not None
        assert (found.method, found.days) == ("labels", days)

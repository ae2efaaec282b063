"""Estimates the accuracy here: from labels if there are enough, else by the package's regression. Always an interval."""

from collections.abc import Callable
from datetime import timedelta
from typing import Literal

import numpy as np

from model_formats.core.runtime import Array
from model_formats.package import Package
from model_formats.statistics.accuracy_estimate import EstimateWindow, estimate_accuracy
from model_formats.statistics.calibration import confidence
from model_formats.statistics.intervals import wilson_interval
from model_formats.statistics.reference_profile import ReferenceProfile
from spoke_agent.adapters.errors import NotAdaptable
from spoke_agent.data.store import DataStore, StoredBatch
from spoke_agent.drift.monitor import WatchedModel
from spoke_agent.tuning.features import Trunk, open_trunk
from sync.core.clock import Clock
from sync.protocol.egress import NEWEST_DAYS, PerfEstimate, rows_at_least

__all__ = ["AccuracyEstimator", "from_labels", "from_rows"]

_LEAST_LABELS = 200
_MOST_ROWS = 500
_LOOK_BACK_DAYS = (NEWEST_DAYS, 14, 28, 56, 90)
"""The last is as long as rows are kept."""


def from_labels(rows: int, correct: int, days: int = NEWEST_DAYS) -> PerfEstimate | None:
    """Share correct among the labelled rows of the last days, with Wilson's 90 % interval; None below 200 of them."""
    if rows < _LEAST_LABELS:
        return None
    return _estimate("labels", correct / rows, wilson_interval(correct, rows), rows, valid=True, days=days)


def from_rows(profile: ReferenceProfile, scores: Array, features: Array) -> PerfEstimate | None:
    """The package's regression on unlabelled rows; None where the package has none."""
    if profile.estimate is None or profile.scores == "values":
        return None
    flat = scores.reshape(len(scores), -1)
    window = EstimateWindow(confidence(flat, profile.scores), flat.argmax(axis=1), features)
    found = estimate_accuracy(profile.estimate, window)
    return _estimate("regression", found.value, (found.low, found.high), found.rows, valid=found.valid)


class AccuracyEstimator:
    """The monitor's `estimator`: opens the champion's trunk once and keeps it.

    `package_of` gives the opened package of an index digest and its variant on this machine, None where it is not here.
    """

    def __init__(self, data: DataStore, clock: Clock, package_of: Callable[[WatchedModel], tuple[Package, str] | None]) -> None:
        self._data, self._clock, self._package_of = data, clock, package_of
        self._trunk: tuple[str, Trunk | None] = ("", None)

    def __call__(self, watched: WatchedModel, profile: ReferenceProfile, batches: list[StoredBatch]) -> PerfEstimate | None:
        """Labels of the last week's rows; else a valid estimate from the newest rows that the hub's own head answered; else
        labels that came late, of the shortest time that has enough of them.
        """
        newest, *longer = _LOOK_BACK_DAYS
        labelled = self._labelled(watched, newest)
        if labelled is not None:
            return labelled
        estimated = self._estimated(watched, profile, batches)
        if estimated is not None and estimated.valid:
            return estimated
        late = (found for days in longer if (found := self._labelled(watched, days)) is not None)
        return next(late, estimated)

    def _labelled(self, watched: WatchedModel, days: int) -> PerfEstimate | None:
        since = self._clock.now() - timedelta(days=days)
        return from_labels(*self._data.labelled_accuracy(watched.model, watched.index, since), days)

    def _estimated(self, watched: WatchedModel, profile: ReferenceProfile, batches: list[StoredBatch]) -> PerfEstimate | None:
        if profile.estimate is None:
            return None
        trunk, own = self._open(watched), [b for b in batches if not b.adapter][-_MOST_ROWS:]
        if trunk is None or sum(b.rows for b in own) < _LEAST_LABELS:
            return None
        some = _newest(own)
        features = np.concatenate([trunk.features(b.inputs) for b in some])
        return from_rows(profile, np.concatenate([b.outputs[profile.output] for b in some]), features)

    def _open(self, watched: WatchedModel) -> Trunk | None:
        if self._trunk[0] != watched.index:
            found = self._package_of(watched)
            try:
                self._trunk = (watched.index, open_trunk(*found) if found else None)
            except NotAdaptable:
                self._trunk = (watched.index, None)
        return self._trunk[1]


def _newest(batches: list[StoredBatch]) -> list[StoredBatch]:
    """The last batches, until about 500 rows are together; the oldest of them cut to fit."""
    found: list[StoredBatch] = []
    left = _MOST_ROWS
    for batch in reversed(batches):
        found.append(batch.where(np.arange(batch.rows) >= batch.rows - left))
        left -= found[-1].rows
        if left <= 0:
            break
    return found


def _estimate(
    method: Literal["labels", "regression"],
    value: float,
    interval: tuple[float, float],
    rows: int,
    *,
    valid: bool,
    days: int = NEWEST_DAYS,
) -> PerfEstimate:
    """Whole percent, the interval rounded outwards."""
    low, high = interval
    centre = round(100 * min(1.0, max(0.0, value)))
    return PerfEstimate(
        method=method,
        estimate=centre,
        low=min(centre, max(0, int(np.floor(100 * low)))),
        high=max(centre, min(100, int(np.ceil(100 * high)))),
        valid=valid,
        days=days,
        rows=rows_at_least(rows),
    )

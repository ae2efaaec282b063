"""From labelled features to a head that may serve: clean, hold out, choose the penalty, gate, fit again on all. Pure."""

from dataclasses import dataclass

import numpy as np

from model_formats.adapter import Anchors, Head
from model_formats.runtimes.base import Array
from spoke_agent.tune.errors import TooFewLabels
from spoke_agent.tune.fit import Rows, fit_head, losses
from spoke_agent.tune.gate import GateTerms, GateVerdict, judge

__all__ = ["Tuned", "clean", "tune_head"]

PENALTIES = (1e-1, 1e-2, 1e-3)
_CV_STEPS = 15
_LEAST_ROWS = 40
_FOLDS = 4
_HELD_OUT = 0.3


@dataclass(frozen=True, slots=True)
class Tuned:
    """The head, whether it may serve, and how it came about."""

    head: Head
    verdict: GateVerdict
    penalty: float
    rows: int
    per_class: tuple[int, ...]
    """Rows of each class; for regression one number."""


def tune_head(rows: Rows, anchors: Anchors, *, current: Head | None = None, terms: GateTerms | None = None) -> Tuned:
    """Fit and gate a head on a site's rows.

    The gate judges a head that saw neither the held-out rows nor the held-out third of the anchors; when it passes, the recipe it
    proved (same penalty) is applied to all rows, and that head is returned. `current` is the head that serves now (the hub's own
    when None); the pull is always towards the hub's. Deterministic. Raises TooFewLabels.
    """
    rows = clean(rows, anchors.head)
    hub, all_anchors = anchors.head, _anchor_rows(anchors, rows)
    order = _order(rows)
    held = _every(order, _HELD_OUT)
    train, test = rows.take(~held), rows.take(held)
    third = np.arange(len(all_anchors)) % 3 == 0
    penalty = _choose(train, all_anchors.take(~third), hub)
    trial = fit_head(train, all_anchors.take(~third), hub, penalty)
    verdict = judge(trial, current or hub, test, all_anchors.take(third), hub, terms or GateTerms())
    head = fit_head(rows, all_anchors, hub, penalty) if verdict.passed else trial
    counts = np.bincount(rows.labels, minlength=hub.weight.shape[1]) if rows.classes else np.array([len(rows)])
    return Tuned(head, verdict, penalty, len(rows), tuple(int(c) for c in counts))


def clean(rows: Rows, hub: Head) -> Rows:
    """Without rows that are not finite, that are there twice, or whose class does not exist. Raises TooFewLabels."""
    numbers = rows.labels.astype(np.float64)
    sound = np.isfinite(numbers) if numbers.ndim == 1 else np.isfinite(numbers).all(axis=1)
    finite = np.isfinite(rows.features).all(axis=1) & sound
    if rows.classes:
        finite &= (rows.labels >= 0) & (rows.labels < hub.weight.shape[1])
    kept = rows.take(np.flatnonzero(finite))
    _, first = np.unique(np.ascontiguousarray(kept.features), axis=0, return_index=True)
    kept = kept.take(np.sort(first))
    if len(kept) < _LEAST_ROWS:
        raise TooFewLabels(
            f"{len(kept)} usable labelled rows of {len(rows)} (finite, different, of known classes); {_LEAST_ROWS} are needed"
        )
    if rows.classes and len(np.unique(kept.labels)) < 2:
        raise TooFewLabels(f"all {len(kept)} rows have one class; that teaches nothing about the others")
    return kept


def _anchor_rows(anchors: Anchors, rows: Rows) -> Rows:
    labels = anchors.labels.astype(np.int64 if rows.classes else np.float64)
    return Rows(anchors.features.astype(np.float32), labels)


def _choose(train: Rows, anchors: Rows, hub: Head) -> float:
    """The penalty with the least cross-validated loss. Each fold walks from the stiffest to the loosest, a few steps each."""
    fold = _order(train) % _FOLDS
    error = dict.fromkeys(PENALTIES, 0.0)
    for k in range(_FOLDS):
        near = hub
        for penalty in PENALTIES:
            near = fit_head(train.take(fold != k), anchors, hub, penalty, near=near, steps=_CV_STEPS)
            error[penalty] += float(losses(near, train.take(fold == k)).sum())
    return min(PENALTIES, key=error.__getitem__)


def _order(rows: Rows) -> Array:
    """Each row's place within its class, shuffled by a fixed seed: taking places by turns is a stratified split."""
    place = np.empty(len(rows), np.int64)
    shuffled = np.random.default_rng(20260101).permutation(len(rows))
    by_class = rows.labels[shuffled] if rows.classes else np.zeros(len(rows), np.int64)
    sequence = shuffled[np.argsort(by_class, kind="stable")]
    place[sequence] = np.arange(len(rows))
    return place


def _every(place: Array, share: float) -> Array:
    """About `share` of the rows, evenly over the order."""
    step: Array = np.floor((place + 1) * share) > np.floor(place * share)
    return step

"""Accuracy without labels: a ridge regression from eight signals of a window to its accuracy, fitted by the hub at build time.

The hub corrupts its own held-out rows in families (turned, blurred, noisy, ...), each at several strengths, and learns how the
signals and the true accuracy move together. It then predicts each family from the others: that error is the honest one, and an
interval of it is shown, never a bare number. Confidence alone (CBPE, ATC) fails exactly when it matters, since it stays high on
rows the model never saw the like of. Signals after Garg et al. 2022 (ATC) and Lee et al. 2018 (Mahalanobis).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from msgspec import Meta

from model_formats.core.document import Value
from model_formats.core.runtime import Array
from model_formats.statistics.calibration import calibrate
from model_formats.statistics.intervals import Z95

__all__ = ["AccuracyEstimate", "Basis", "Estimate", "EstimateWindow", "estimate_accuracy", "fit_estimate"]

SIGNALS = (
    "calibrated_confidence",
    "share_above_threshold",
    "mean_confidence",
    "embedding_shift",
    "median_distance",
    "tail_distance",
    "norm_ratio",
    "label_shift",
)
_COMPONENTS = 16
_RIDGE = 0.5


class Basis(Value):
    """What the signals are measured against: the clean held-out rows."""

    mean: tuple[float, ...]
    components: tuple[tuple[float, ...], ...]
    """Principal directions of the features, divided by their standard deviation: rows [p, d]."""
    residual: float
    """Standard deviation of what the components leave over."""
    boundary: float
    """95th percentile of the distance."""
    median: float
    """Median of the distance."""
    norm: float
    """Median length of a feature vector."""
    threshold: float
    """Confidence above which as many clean rows lie as are right (ATC)."""
    knots: tuple[float, ...]
    correct: tuple[float, ...]
    """Calibration of confidence, as knots."""
    classes: tuple[float, ...]
    """Share of each predicted class."""


class Estimate(Value):
    """`profile.json`'s `estimate`: the fitted regression with its own error."""

    basis: Basis
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    families: tuple[str, ...]
    error: float
    """Mean absolute error on families that the fit did not see."""
    interval: float
    """Half width that covered 90 % of those."""
    max_outside: Annotated[float, Meta(ge=0, le=1)] = 0.35
    """With more rows outside the boundary the estimate is not valid."""


class EstimateWindow(NamedTuple):
    """Rows to judge. `confidence` [n], `predicted` [n] class indexes, `features` [n, d]."""

    confidence: Array
    predicted: Array
    features: Array


@dataclass(frozen=True, slots=True)
class AccuracyEstimate:
    """Shares in 0..1. When `valid` is False the rows are too unlike the reference for the number to mean anything."""

    value: float
    low: float
    high: float
    valid: bool
    rows: int


def estimate_accuracy(estimate: Estimate, window: EstimateWindow) -> AccuracyEstimate:
    """Estimate the accuracy on a window. The interval joins the regression's own error and the chance of `n` rows."""
    signals = (_signals(estimate.basis, window) - np.array(estimate.centre)) / np.array(estimate.scale)
    value = float(np.clip(signals @ np.array(estimate.weights) + estimate.bias, 0.0, 1.0))
    rows = len(window.confidence)
    half = float(np.hypot(estimate.interval, Z95 * np.sqrt(max(value * (1 - value), 0.01) / max(rows, 1))))
    outside = float((_distance(estimate.basis, window.features) > estimate.basis.boundary).mean()) if rows else 1.0
    return AccuracyEstimate(value, max(0.0, value - half), min(1.0, value + half), outside < estimate.max_outside, rows)


def fit_estimate(
    clean: EstimateWindow, correct: Array, shifted: Sequence[tuple[str, EstimateWindow, Array]], classes: int
) -> Estimate | None:
    """Fit from the clean rows and (family, window, correct) of shifted ones; None with fewer than three families."""
    families = tuple(dict.fromkeys(name for name, _, _ in shifted))
    if len(families) < 3:
        return None
    basis = _fit_basis(clean, correct, classes)
    sets = [("clean", clean, correct), *shifted]
    signals = np.array([_signals(basis, window) for _, window, _ in sets])
    truth = np.array([c.mean() for _, _, c in sets])
    member = np.array([name for name, _, _ in sets])
    centre, scale = signals.mean(axis=0), np.maximum(signals.std(axis=0), 1e-6)
    table = (signals - centre) / scale
    errors = np.concatenate([_unseen_errors(table, truth, member == family) for family in families])
    weights, bias = _ridge(table, truth)
    return Estimate(
        basis=basis,
        centre=_floats(centre),
        scale=_floats(scale),
        weights=_floats(weights),
        bias=float(bias),
        families=families,
        error=float(errors.mean()),
        interval=float(np.quantile(errors, 0.9)),
    )


def _unseen_errors(table: Array, truth: Array, held: Array) -> Array:
    weights, bias = _ridge(table[~held], truth[~held])
    errors: Array = np.abs(np.clip(table[held] @ weights + bias, 0, 1) - truth[held])
    return errors


def _ridge(table: Array, truth: Array) -> tuple[Array, float]:
    centre, mean = table.mean(axis=0), float(truth.mean())
    centred = table - centre
    weights: Array = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(table.shape[1]), centred.T @ (truth - mean))
    return weights, mean - float(centre @ weights)


def _fit_basis(clean: EstimateWindow, correct: Array, classes: int) -> Basis:
    features = clean.features.astype(np.float64)
    centred = features - features.mean(axis=0)
    _, sigma, directions = np.linalg.svd(centred, full_matrices=False)
    deviation = sigma / np.sqrt(max(len(features) - 1, 1))
    keep = [i for i in range(min(_COMPONENTS, len(deviation))) if deviation[i] > 1e-6]
    components = directions[keep] / deviation[keep, None]
    rest = centred - (centred @ directions[keep].T) @ directions[keep]
    knots = calibrate(clean.confidence, correct)
    blank = Basis(
        mean=_floats(features.mean(axis=0)),
        components=tuple(_floats(row) for row in components),
        residual=float(max(np.sqrt((rest**2).sum(axis=1).mean()), 1e-6)),
        boundary=1.0,
        median=1.0,
        norm=float(max(np.median(np.linalg.norm(features, axis=1)), 1e-6)),
        threshold=float(np.quantile(clean.confidence, 1 - correct.mean())),
        knots=knots.confidence,
        correct=knots.correct,
        classes=_floats(np.bincount(clean.predicted, minlength=classes) / len(clean.predicted)),
    )
    distance = _distance(blank, features)
    return blank.replace(boundary=float(np.quantile(distance, 0.95)), median=float(np.median(distance)))


def _distance(basis: Basis, features: Array) -> Array:
    """Mahalanobis distance in the kept components, joined with the length of the rest."""
    centred = features.astype(np.float64) - np.array(basis.mean)
    components = np.array(basis.components)
    scores = centred @ components.T
    whole, kept = (centred**2).sum(axis=1), (scores**2 / (components**2).sum(axis=1)).sum(axis=1)
    distance: Array = np.sqrt((scores**2).sum(axis=1) + np.maximum(whole - kept, 0) / basis.residual**2)
    return distance


def _signals(basis: Basis, window: EstimateWindow) -> Array:
    raw, features = window.confidence, window.features.astype(np.float64)
    distance = _distance(basis, features)
    shift = np.array(basis.components) @ (features.mean(axis=0) - np.array(basis.mean))
    shares = np.bincount(window.predicted, minlength=len(basis.classes))[: len(basis.classes)] / max(len(raw), 1)
    return np.array(
        [
            np.interp(raw, basis.knots, basis.correct).mean(),
            (raw >= basis.threshold).mean(),
            raw.mean(),
            np.log1p(np.linalg.norm(shift)),
            np.log(np.median(distance) / basis.median),
            (distance > basis.boundary).mean(),
            np.log(max(float(np.median(np.linalg.norm(features, axis=1))), 1e-6) / basis.norm),
            np.abs(shares - np.array(basis.classes)).sum() / 2,
        ]
    )


def _floats(values: Array) -> tuple[float, ...]:
    """Seven significant digits: enough, and half the bytes."""
    return tuple(float(f"{v:.7g}") for v in values)

"""Calibrated confidence: how often a model is right at a given score (isotonic regression on held-out rows)."""

from typing import Literal

import numpy as np

from model_formats.core.document import Value
from model_formats.core.runtime import Array

__all__ = ["Calibration", "Scores", "calibrate", "confidence"]

Scores = Literal["logits", "probabilities", "values"]
"""What the first output holds: `values` has no confidence (regression, embedding)."""


class Calibration(Value):
    """Confidence to share correct on held-out rows: isotonic, as knots to interpolate between."""

    confidence: tuple[float, ...]
    correct: tuple[float, ...]
    rows: int


def confidence(scores: Array, kind: Scores) -> Array:
    """Largest class probability of each row; NaN for `values`."""
    if kind == "values":
        return np.full(len(scores), np.nan)
    table = scores.reshape(len(scores), -1).astype(np.float64)
    if kind == "logits":
        table = np.exp(table - table.max(axis=1, keepdims=True))
        table /= table.sum(axis=1, keepdims=True)
    best: Array = table.max(axis=1)
    return best


def calibrate(raw: Array, correct: Array) -> Calibration:
    """Isotonic regression (pool adjacent violators) of `correct` on raw confidence, thinned to at most 32 knots."""
    order = np.argsort(raw, kind="stable")
    blocks: list[list[float]] = []  # [sum of correct, rows, sum of confidence]
    for x, y in zip(raw[order], correct[order].astype(np.float64), strict=True):
        blocks.append([y, 1.0, float(x)])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    keep = np.unique(np.linspace(0, len(blocks) - 1, min(32, len(blocks))).round().astype(int))
    knots = [blocks[i] for i in keep]
    return Calibration(confidence=tuple(x / n for _, n, x in knots), correct=tuple(y / n for y, n, _ in knots), rows=len(raw))

"""Fitting a head: cross-entropy with a pull to the hub's head and anchors against forgetting, by L-BFGS in plain NumPy.

    minimise  mean CE(X W + b, y) + a * mean CE(A W + b, z) + lambda/2 * |s (W - W0)|^2 + lambda/2 * |b - b0|^2

X, y are the site's rows; A, z the hub's anchors; W0, b0 the hub's head; s the root mean square of the features, so that lambda
means the same for every model. Regression heads: squares in place of CE, solved directly. Features are [n, d], heads [d, k].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model_formats.core.runtime import Array
from model_formats.package.adapter import Head

__all__ = ["ANCHOR_WEIGHT", "FitRows", "fit_head", "lbfgs", "losses"]

ANCHOR_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class FitRows:
    """Features [n, d] and what they should give: class indexes (int64 [n]) or targets (float [n] or [n, k])."""

    features: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Array) -> "FitRows":
        """Some of the rows."""
        return FitRows(self.features[which], self.labels[which])

    @property
    def classes(self) -> bool:
        """Whether labels are class indexes."""
        return self.labels.dtype.kind == "i"


def fit_head(
    site: FitRows,
    anchors: FitRows | None,
    hub: Head,
    penalty: float,
    *,
    anchor_weight: float = ANCHOR_WEIGHT,
    near: Head | None = None,
    steps: int = 60,
) -> Head:
    """The head that is best for the site without leaving the hub's too far. Deterministic. `near` is where the search starts."""
    # Features of different models differ by orders of magnitude; scaled, one penalty means the same for all.
    scale = float(np.sqrt((site.features.astype(np.float64) ** 2).mean())) or 1.0
    parts = [(_with_one(site.features / scale), site.labels, 1.0)]
    if anchors is not None and len(anchors):
        parts.append((_with_one(anchors.features.astype(np.float64) / scale), anchors.labels, anchor_weight))
    start = np.vstack([hub.weight.astype(np.float64) * scale, hub.bias.astype(np.float64)])
    begin = start if near is None else np.vstack([near.weight.astype(np.float64) * scale, near.bias.astype(np.float64)])
    whole = _classify(parts, start, penalty, begin, steps) if site.classes else _regress(parts, start, penalty)
    return Head((whole[:-1] / scale).astype(np.float32), whole[-1].astype(np.float32))


def losses(head: Head, rows: FitRows) -> Array:
    """Loss of each row: cross-entropy, or squared error."""
    scores = rows.features.astype(np.float64) @ head.weight + head.bias
    if not rows.classes:
        error: Array = ((scores - rows.labels.reshape(len(rows), -1)) ** 2).mean(axis=1)
        return error
    shifted = scores - scores.max(axis=1, keepdims=True)
    cross: Array = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(rows)), rows.labels]
    return cross


def lbfgs(
    f: Callable[[Array], tuple[float, Array]], x: Array, *, steps: int = 60, memory: int = 5, tolerance: float = 1e-4
) -> Array:
    """Minimise a smooth convex function from `x`. `f` gives value and gradient (Nocedal and Wright, algorithm 7.5).

    Ends when no slope is steeper than `tolerance`, or when a step gains less than that share of the value: what further steps
    would change is far below what other rows of the same site would.
    """
    value, gradient = f(x)
    pairs: list[tuple[Array, Array, float]] = []
    for _ in range(steps):
        if np.abs(gradient).max() < tolerance:
            break
        direction = -_two_loop(gradient, pairs)
        slope = float(np.vdot(direction, gradient))
        # The first step has no curvature to go by, so it is kept short.
        length = 1.0 if pairs else 1.0 / max(1.0, float(np.abs(gradient).sum()))
        for _ in range(20):  # Armijo
            fresh = x + length * direction
            new_value, new_gradient = f(fresh)
            if new_value <= value + 1e-4 * length * slope:
                break
            length *= 0.5
        else:
            break
        moved, bent = fresh - x, new_gradient - gradient
        curvature = float(np.vdot(moved, bent))
        # Without positive curvature the update would not stay a descent direction.
        if curvature > 1e-12:
            pairs = [*pairs[-(memory - 1) :], (moved, bent, 1.0 / curvature)]
        gained, x, value, gradient = value - new_value, fresh, new_value, new_gradient
        if gained < tolerance * abs(value):
            break
    return x


def _two_loop(gradient: Array, pairs: list[tuple[Array, Array, float]]) -> Array:
    direction, factors = gradient.copy(), []
    for moved, bent, rho in reversed(pairs):
        factors.append(rho * float(np.vdot(moved, direction)))
        direction -= factors[-1] * bent
    if pairs:
        moved, bent, rho = pairs[-1]
        direction *= 1.0 / (rho * float(np.vdot(bent, bent)))
    for (moved, bent, rho), factor in zip(pairs, reversed(factors), strict=True):
        direction += moved * (factor - rho * float(np.vdot(bent, direction)))
    return direction


def _classify(parts: list[tuple[Array, Array, float]], start: Array, penalty: float, begin: Array, steps: int) -> Array:
    weight = np.concatenate([np.full(len(y), w / len(y)) for _, y, w in parts])
    rows = np.vstack([x for x, _, _ in parts])
    labels = np.concatenate([y for _, y, _ in parts]).astype(np.int64)
    at, columns = np.arange(len(rows)), np.ascontiguousarray(rows.T)

    def value_and_gradient(head: Array) -> tuple[float, Array]:
        scores = rows @ head
        scores -= scores.max(axis=1, keepdims=True)
        right = scores[at, labels]
        shares = np.exp(scores, out=scores)
        total = shares.sum(axis=1)
        loss = float(weight @ (np.log(total) - right))
        shares *= (weight / total)[:, None]
        shares[at, labels] -= weight
        away = head - start
        return loss + 0.5 * penalty * float(np.vdot(away, away)), columns @ shares + penalty * away

    return lbfgs(value_and_gradient, begin, steps=steps)


def _regress(parts: list[tuple[Array, Array, float]], start: Array, penalty: float) -> Array:
    width = start.shape[0]
    left, right = penalty * np.eye(width), penalty * start
    for rows, labels, weight in parts:
        left = left + weight / len(rows) * rows.T @ rows
        right = right + weight / len(rows) * rows.T @ labels.astype(np.float64).reshape(len(rows), -1)
    solved: Array = np.linalg.solve(left, right)
    return solved


def _with_one(features: Array) -> Array:
    return np.hstack([features.astype(np.float64), np.ones((len(features), 1))])

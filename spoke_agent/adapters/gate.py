"""Decides whether a fitted head may answer: it must win on rows outside the fit, and still get the hub's anchors right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from model_formats.core.document import Value
from model_formats.core.runtime import Array
from model_formats.package.adapter import Head
from model_formats.statistics.distributions import binomial_at_least
from spoke_agent.adapters.head_fit import FitRows
from spoke_agent.adapters.permutation import shuffles

__all__ = ["Fold", "AdapterGateTerms", "GateVerdict", "judge", "judge_pair", "score", "side_by_side"]


_SHUFFLES = 499


@dataclass(frozen=True, slots=True)
class AdapterGateTerms:
    """`alpha` of both tests; how much of the hub's anchors may be lost (share, or relative for regression)."""

    alpha: float = 0.02
    max_anchor_loss: float = 0.15


class GateVerdict(Value):
    """Counts on rows the fit did not see. `wins`: only the new head is right (or nearer); `losses`: only the old one is."""

    passed: bool
    rows: Annotated[int, Meta(ge=0)]
    wins: Annotated[int, Meta(ge=0)]
    losses: Annotated[int, Meta(ge=0)]
    p: float
    before: float
    """Score of the head that serves now: share right, or for regression 1 - error / spread."""
    after: float
    anchors: Annotated[int, Meta(ge=0)]
    anchors_before: float
    anchors_after: float


@dataclass(frozen=True, slots=True)
class Fold:
    """A head, and the rows and anchors that its fit did not see."""

    fitted: Head
    rows: FitRows
    anchors: FitRows | None = None


def judge(folds: Sequence[Fold], current: Head, hub: Head, terms: AdapterGateTerms) -> GateVerdict:
    """Three conditions, on rows that the head judged on them never saw. Every labelled row is judged in one of the folds.

    1. The recipe wins against `current` by a one-sided sign test (mid-p, since few rows are discordant at a small site).
    2. What it answers and what is right belong together, by a permutation test: labels that say nothing about the rows do not
       pass, however bad the current head is here and however rare the other classes are.
    3. On held-out anchors it loses no more than the terms allow against the hub's head.
    """
    pairs = [judge_pair(f.fitted, current, f.rows) for f in folds]
    wins, losses = sum(p.wins for p in pairs), sum(p.losses for p in pairs)
    kept = [f for f in folds if f.anchors is not None and len(f.anchors)]
    before, after = _mean_score([(hub, f.anchors) for f in kept]), _mean_score([(f.fitted, f.anchors) for f in kept])
    p = binomial_at_least(wins, wins + losses, 0.5)
    middle = (p + binomial_at_least(wins + 1, wins + losses, 0.5)) / 2
    better = wins > losses and middle <= terms.alpha and _means_something(folds, terms.alpha)
    return GateVerdict(
        passed=better and after >= before - terms.max_anchor_loss,
        rows=sum(p.rows for p in pairs),
        wins=wins,
        losses=losses,
        p=p,
        before=_mean_score([(current, f.rows) for f in folds]),
        after=_mean_score([(f.fitted, f.rows) for f in folds]),
        anchors=sum(len(f.anchors) for f in kept if f.anchors is not None),
        anchors_before=before,
        anchors_after=after,
    )


def judge_pair(fitted: Head, current: Head, rows: FitRows) -> GateVerdict:
    """The counts alone, on rows that `fitted` never saw; `passed` stays False."""
    wins, losses = _discordant(fitted, current, rows)
    return GateVerdict(
        passed=False,
        rows=len(rows),
        wins=wins,
        losses=losses,
        p=binomial_at_least(wins, wins + losses, 0.5),
        before=score(current, rows),
        after=score(fitted, rows),
        anchors=0,
        anchors_before=1.0,
        anchors_after=1.0,
    )


def side_by_side(answers: Sequence[Array], labels: Array) -> tuple[FitRows, list[Head]]:
    """What several models answered [n, k] as the features of rows, and for each model the head that picks its answers.

    So whole models are judged by the very rule that heads are judged by.
    """
    width = answers[0].shape[1]
    one, none = np.eye(width, dtype=np.float32), np.zeros((width, width), np.float32)
    picks = [np.concatenate([one if i == k else none for i in range(len(answers))]) for k in range(len(answers))]
    return FitRows(np.concatenate(answers, axis=1), labels), [Head(p, np.zeros(width, np.float32)) for p in picks]


def score(head: Head, rows: FitRows) -> float:
    """Share right; for regression the share of the spread that is explained (may be negative)."""
    if rows.classes:
        return float(_right(head, rows).mean()) if len(rows) else 0.0
    target = rows.labels.reshape(len(rows), -1)
    spread = float(((target - target.mean(axis=0)) ** 2).mean()) or 1.0
    return 1.0 - float((_errors(head, rows) ** 2).mean()) / spread


def _mean_score(judged: Sequence[tuple[Head, FitRows | None]]) -> float:
    """Over all rows, each by its own head; 1 where there are none."""
    some = [(head, rows) for head, rows in judged if rows is not None and len(rows)]
    total = sum(len(rows) for _, rows in some)
    return sum(score(head, rows) * len(rows) for head, rows in some) / total if total else 1.0


def _means_something(folds: Sequence[Fold], alpha: float) -> bool:
    """Would the same answers fit shuffled labels as well? Shuffled within folds, 499 times, by a fixed seed."""
    judged = [(_answers(f.fitted, f.rows), f.rows.labels) for f in folds if len(f.rows)]
    if not all(f.rows.classes for f in folds):
        return _mean_score([(f.fitted, f.rows) for f in folds]) > 0
    found = sum(int((answers == labels).sum()) for answers, labels in judged)
    chance = np.zeros(_SHUFFLES, np.int64)
    for number, (answers, labels) in enumerate(judged):
        chance += (labels[shuffles(f"gate {number}", _SHUFFLES, len(labels))] == answers).sum(axis=1)
    as_good = int((chance >= found).sum())
    return (1 + as_good) / (1 + _SHUFFLES) <= alpha


def _answers(head: Head, rows: FitRows) -> Array:
    answers: Array = (rows.features.astype(np.float64) @ head.weight + head.bias).argmax(axis=1)
    return answers


def _discordant(fitted: Head, current: Head, rows: FitRows) -> tuple[int, int]:
    if rows.classes:
        new, old = _right(fitted, rows), _right(current, rows)
        return int((new & ~old).sum()), int((old & ~new).sum())
    new, old = _errors(fitted, rows).mean(axis=1), _errors(current, rows).mean(axis=1)
    return int((new < old).sum()), int((old < new).sum())


def _right(head: Head, rows: FitRows) -> Array:
    right: Array = _answers(head, rows) == rows.labels
    return right


def _errors(head: Head, rows: FitRows) -> Array:
    error: Array = np.abs(rows.features.astype(np.float64) @ head.weight + head.bias - rows.labels.reshape(len(rows), -1))
    return error

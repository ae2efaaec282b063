"""May the fitted head answer? It must surely win on rows that the fit never saw, and still get the hub's anchors right."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from model_formats.adapter import Head
from model_formats.document import Value
from model_formats.pvalues import binomial_tail
from model_formats.runtimes.base import Array
from spoke_agent.tune.fit import Rows

__all__ = ["GateTerms", "GateVerdict", "judge", "judge_pair", "score"]


@dataclass(frozen=True, slots=True)
class GateTerms:
    """`alpha` of both exact tests; how much of the hub's anchors may be lost (share, or relative for regression)."""

    alpha: float = 0.02
    max_anchor_loss: float = 0.15


class GateVerdict(Value):
    """Counts on rows the fit did not see. `wins`: only the new head is right (or nearer); `losses`: only the old one is."""

    passed: bool
    rows: Annotated[int, Field(ge=0)]
    wins: Annotated[int, Field(ge=0)]
    losses: Annotated[int, Field(ge=0)]
    p: float
    before: float
    """Score of the head that serves now: share right, or for regression 1 - error / spread."""
    after: float
    anchors: Annotated[int, Field(ge=0)]
    anchors_before: float
    anchors_after: float


def judge(fitted: Head, current: Head, held_out: Rows, anchors: Rows | None, hub: Head, terms: GateTerms) -> GateVerdict:
    """Three conditions, all exact on rows that `fitted` never saw.

    1. It wins against `current` by a one-sided sign test.
    2. It is right more often than naming the commonest class every time: labels that say nothing about the rows do not pass,
       however bad the current head is here.
    3. On held-out anchors it loses no more than the terms allow against the hub's head.
    """
    pair = judge_pair(fitted, current, held_out)
    kept_before = score(hub, anchors) if anchors is not None and len(anchors) else 1.0
    kept_after = score(fitted, anchors) if anchors is not None and len(anchors) else 1.0
    better = pair.wins > pair.losses and pair.p <= terms.alpha and _beats_guessing(fitted, held_out, terms.alpha)
    return pair.model_copy(
        update={
            "passed": better and kept_after >= kept_before - terms.max_anchor_loss,
            "anchors": 0 if anchors is None else len(anchors),
            "anchors_before": kept_before,
            "anchors_after": kept_after,
        }
    )


def judge_pair(fitted: Head, current: Head, rows: Rows) -> GateVerdict:
    """The counts alone, on rows that `fitted` never saw; `passed` stays False."""
    wins, losses = _discordant(fitted, current, rows)
    return GateVerdict(
        passed=False,
        rows=len(rows),
        wins=wins,
        losses=losses,
        p=binomial_tail(wins, wins + losses, 0.5),
        before=score(current, rows),
        after=score(fitted, rows),
        anchors=0,
        anchors_before=1.0,
        anchors_after=1.0,
    )


def score(head: Head, rows: Rows) -> float:
    """Share right; for regression the share of the spread that is explained (may be negative)."""
    if rows.classes:
        return float(_right(head, rows).mean()) if len(rows) else 0.0
    target = rows.labels.reshape(len(rows), -1)
    spread = float(((target - target.mean(axis=0)) ** 2).mean()) or 1.0
    return 1.0 - float((_errors(head, rows) ** 2).mean()) / spread


def _beats_guessing(head: Head, rows: Rows, alpha: float) -> bool:
    if not rows.classes:
        return score(head, rows) > 0
    commonest = float(np.bincount(rows.labels).max()) / len(rows)
    return binomial_tail(int(_right(head, rows).sum()), len(rows), commonest) <= alpha


def _discordant(fitted: Head, current: Head, rows: Rows) -> tuple[int, int]:
    if rows.classes:
        new, old = _right(fitted, rows), _right(current, rows)
        return int((new & ~old).sum()), int((old & ~new).sum())
    new, old = _errors(fitted, rows).mean(axis=1), _errors(current, rows).mean(axis=1)
    return int((new < old).sum()), int((old < new).sum())


def _right(head: Head, rows: Rows) -> Array:
    right: Array = (rows.features.astype(np.float64) @ head.weight + head.bias).argmax(axis=1) == rows.labels
    return right


def _errors(head: Head, rows: Rows) -> Array:
    error: Array = np.abs(rows.features.astype(np.float64) @ head.weight + head.bias - rows.labels.reshape(len(rows), -1))
    return error

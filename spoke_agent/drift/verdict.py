"""Tests one window against the reference: single columns and joint test with equal weight, by the Cauchy combination."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_formats.core.runtime import Array
from model_formats.statistics.distributions import cauchy
from model_formats.statistics.multivariate import hotelling
from model_formats.statistics.reference_profile import ReferenceProfile, count, rff
from model_formats.statistics.univariate import ColumnTest, best_p, run_columns
from spoke_agent.drift.detector import Detector
from sync.protocol.egress import DriftVerdict, FeatureVerdict, p_bucket, rows_at_least

__all__ = ["DriftWindow", "judge", "judge_counts", "verdict_of"]

_NAMED = 16
"""At most so many columns are named in a verdict."""
_CLEAR = 0.01


@dataclass(frozen=True, slots=True)
class DriftWindow:
    """A tested window: p of the union, of the joint test alone, and each column's."""

    rows: int
    p: float
    joint_p: float
    columns: tuple[ColumnTest, ...]
    counts: tuple[Array, ...]
    joint_sum: Array
    """Sum of the joint features over the rows, so that windows can be added up."""


def judge(profile: ReferenceProfile, table: Array) -> DriftWindow:
    """Count, test and combine. `table` is what `reference_profile.columns` gives for the window's rows."""
    return judge_counts(profile, count(profile, table), rff(profile, table).sum(axis=0), len(table))


def judge_counts(profile: ReferenceProfile, counts: Sequence[Array], joint_sum: Array, rows: int) -> DriftWindow:
    """The tests on summable counts alone: the same numbers whether the rows came at once or in parts (or from many sites)."""
    columns = run_columns(profile, counts)
    single = best_p(columns)
    joint = hotelling(profile.joint, joint_sum / max(rows, 1), rows).p if profile.joint else 1.0
    union = cauchy([single, joint]) if profile.joint else single
    return DriftWindow(rows, union, joint, tuple(columns), tuple(np.asarray(c) for c in counts), joint_sum)


def verdict_of(
    profile: ReferenceProfile, window: DriftWindow, detector: Detector, *, confidence_fell: bool = False
) -> DriftVerdict:
    """What may be said about a window: buckets and positions, no value."""
    surest = sorted((c for c in window.columns if c.p * len(window.columns) <= _CLEAR), key=lambda c: c.p)[:_NAMED]
    missing = sum(int(c[-1]) for c in window.counts)
    cells = sum(int(c.sum()) for c in window.counts)
    return DriftVerdict(
        edges=profile.edges_digest,
        level=detector.level,
        evidence=_log10(detector.statistic),
        budget=detector.budget,
        p=p_bucket(window.p),
        joint=p_bucket(window.joint_p),
        features=tuple(FeatureVerdict(feature=c.feature, p=p_bucket(c.p), direction=c.direction) for c in surest),
        confidence_fell=confidence_fell,
        missing_percent=round(100 * missing / cells) if cells else 0,
        windows=max(1, detector.windows),
        rows=rows_at_least(window.rows),
    )


def _log10(value: float) -> int:
    return int(min(12, max(0, np.floor(np.log10(value))))) if value >= 1 else 0

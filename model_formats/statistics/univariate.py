"""Each column alone: is the window's histogram one that the reference would give?

Three tests a column on exact counts: Kolmogorov-Smirnov on the cells (shifts), chi-squared on about ten groups of cells (scale,
tails, categories), and an exact binomial on what the reference hardly knows (missing, other). A column's p is the least of those
that apply, times their number; over columns, the Cauchy combination. The false-alarm rate holds at every n.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model_formats.core.runtime import Array
from model_formats.core.types import Direction
from model_formats.statistics.distributions import binomial_at_least, cauchy, chi2_tail, kolmogorov_tail
from model_formats.statistics.reference_profile import FeatureProfile, ReferenceProfile

__all__ = ["ColumnTest", "best_p", "compare", "run_columns", "strange_cells"]

_GROUPS = 10
_LEAST_EXPECTED = 5.0


@dataclass(frozen=True, slots=True)
class ColumnTest:
    """One column's outcome: its own p (not yet corrected for the number of columns) and which way it moved."""

    feature: int
    p: float
    direction: Direction


def run_columns(profile: ReferenceProfile, counts: Sequence[Array]) -> list[ColumnTest]:
    """Test every column of a window against the profile's reference counts."""
    return [
        compare(i, feature.kind, np.asarray(feature.counts, np.float64), counts[i].astype(np.float64), strange_cells(feature))
        for i, feature in enumerate(profile.features)
    ]


def strange_cells(feature: FeatureProfile) -> int:
    """How many of a column's last cells hold no known value: missing, and for categories other."""
    return 1 if feature.kind == "numeric" else 2


def best_p(tests: Sequence[ColumnTest]) -> float:
    """All columns together by the Cauchy combination: for one clear column it is Bonferroni, for many doubtful ones it sees more.

    Its level holds under any dependence of the columns, nearly (Liu and Xie 2020).
    """
    return cauchy([t.p for t in tests])


def compare(number: int, kind: Literal["numeric", "categorical"], reference: Array, window: Array, strange: int) -> ColumnTest:
    """Test one column's counts, whole or summed into wider cells; the last `strange` cells hold missing and unknown values."""
    known = len(reference) - strange
    n, m = window.sum(), reference.sum()
    if n == 0 or m == 0:
        return ColumnTest(number, 1.0, "none")
    odd = _strange(reference[known:].sum(), m, window[known:].sum(), n)
    ps = [odd] if odd is not None else []
    if reference[:known].sum() and window[:known].sum():
        ps.append(_chi2(reference[:known], window[:known]))
        if kind == "numeric":
            ps.append(_ks(reference[:known], window[:known]))
    p = min(1.0, min(ps, default=1.0) * max(1, len(ps)))
    return ColumnTest(number, p, _direction(kind, reference[:known], window[:known], odd, p))


def _strange(reference: float, m: float, window: float, n: float) -> float | None:
    """Missing and unknown: exact, given how many of both there are (Przyborowski and Wilenski); None where there are none."""
    total = int(reference + window)
    if not total:
        return None
    share = n / (n + m)
    return min(1.0, 2 * min(binomial_at_least(int(window), total, share), binomial_at_least(int(reference), total, 1 - share)))


def _ks(reference: Array, window: Array) -> float:
    n, m = window.sum(), reference.sum()
    return kolmogorov_tail(float(np.abs(window.cumsum() / n - reference.cumsum() / m).max()), n, m)


def _chi2(reference: Array, window: Array) -> float:
    """Two-sample chi-squared over groups of neighbouring cells that hold enough of the reference."""
    group = _groups(reference, window.sum())
    a = np.bincount(group, weights=window)
    b = np.bincount(group, weights=reference)
    n, m = a.sum(), b.sum()
    filled = (a + b) > 0
    if filled.sum() < 2:
        return 1.0
    value = ((np.sqrt(m / n) * a - np.sqrt(n / m) * b)[filled] ** 2 / (a + b)[filled]).sum()
    return chi2_tail(float(value), float(filled.sum() - 1))


def _groups(reference: Array, rows: float) -> Array:
    """Cells -> groups: tenths of the reference's mass, each expecting at least five rows of the window."""
    total = reference.sum()
    middle = (reference.cumsum() - reference / 2) / total
    group = np.unique(np.minimum((middle * _GROUPS).astype(np.int64), _GROUPS - 1), return_inverse=True)[1]
    mass = np.bincount(group, weights=reference)
    while len(mass) > 1 and mass.min() * rows / total < _LEAST_EXPECTED:
        thin = int(mass.argmin())
        group = np.unique(np.where(group == thin, thin - 1 if thin else 1, group), return_inverse=True)[1]
        mass = np.bincount(group, weights=reference)
    return group


def _direction(kind: str, reference: Array, window: Array, odd: float | None, p: float) -> Direction:
    if p > 0.01:
        return "none"
    if odd is not None and odd <= p:
        return "missing"
    if kind == "categorical":
        return "mix"
    return _numeric_direction(reference, window)


def _numeric_direction(reference: Array, window: Array) -> Direction:
    """By ranks in the reference: up or down when their mean moved, else spread or narrow."""
    n, m = window.sum(), reference.sum()
    rank = (reference.cumsum() - reference / 2) / m
    shift = float((window * rank).sum() / n) - 0.5
    spread = float((window * (rank - 0.5) ** 2).sum() / n) - float((reference * (rank - 0.5) ** 2).sum() / m)
    if abs(shift) * np.sqrt(12) >= abs(spread) * np.sqrt(180):
        return "up" if shift > 0 else "down"
    return "spread" if spread > 0 else "narrow"

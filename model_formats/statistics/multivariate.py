"""All input columns together: two Hotelling tests on the mean of random Fourier features.

They need only a mean of 32 numbers, which can be summed over sites. The test in all directions finds a changed relation between
columns; the one in the two directions of largest variance finds a small shift that many columns share.
"""

from dataclasses import dataclass

import numpy as np

from model_formats.core.runtime import Array
from model_formats.statistics.distributions import cauchy, f_tail
from model_formats.statistics.reference_profile import Joint

__all__ = ["JointTest", "hotelling"]

_LEADING = 2
_FLAT = 1e-6
"""Directions with less than this share of the largest variance carry no information."""


@dataclass(frozen=True, slots=True)
class JointTest:
    """Hotelling's T squared in all directions, and the p of both tests together."""

    value: float
    p: float


def hotelling(joint: Joint, mean: Array, rows: int) -> JointTest:
    """Test a window's mean of `rff` over `rows` rows. T^2 with the reference's covariance, F-distributed."""
    covariance = np.asarray(joint.covariance)
    variances, axes = np.linalg.eigh(covariance)
    useful = variances > _FLAT * max(float(variances[-1]), 1e-300)
    freedom, m = int(useful.sum()), joint.rows
    if not freedom or m - freedom < 10 or not rows:
        return JointTest(0.0, 1.0)
    along = (mean - np.asarray(joint.mean)) @ axes[:, useful]
    squares = along**2 / variances[useful] / (1 / rows + 1 / m)
    leading = min(_LEADING, freedom)
    return JointTest(float(squares.sum()), cauchy([_p(squares, m), _p(squares[-leading:], m)]))


def _p(squares: Array, m: int) -> float:
    freedom = len(squares)
    return f_tail(float(squares.sum()) * (m - freedom) / (freedom * (m - 1)), freedom, m - freedom)

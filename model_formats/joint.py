"""All input columns together: a Hotelling test on the mean of random Fourier features.

It sees what no single column shows (a correlation that flips sign), from a mean of 32 numbers that can be summed over sites.
"""

from dataclasses import dataclass

import numpy as np

from model_formats.profile import Joint
from model_formats.pvalues import f_tail
from model_formats.runtimes.base import Array

__all__ = ["JointTest", "hotelling"]

_FLAT = 1e-6
"""Directions with less than this share of the largest variance carry no information."""


@dataclass(frozen=True, slots=True)
class JointTest:
    """Hotelling's T squared and its p."""

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
    value = float((along**2 / variances[useful]).sum() / (1 / rows + 1 / m))
    return JointTest(value, f_tail(value * (m - freedom) / (freedom * (m - 1)), freedom, m - freedom))

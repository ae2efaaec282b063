"""Confidence bounds of a share, and the quantiles of the normal distribution that go with them."""

import math

__all__ = ["Z95", "Z999", "wilson_interval"]

Z95 = 1.6448536269514722
"""One-sided 95 %; both sides together leave a 90 % interval."""
Z999 = 3.090232306167813
"""One-sided 99.9 %."""


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score bounds of a share (Wilson 1927), one-sided at 95 % each by default. No trials: (0, 1)."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, z * z
    middle = share + z2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, (middle - half) / (1 + z2 / trials)), min(1.0, (middle + half) / (1 + z2 / trials))

"""Makes counts safe to send: merges small cells with a neighbour, rounds counts, adds noise where the site asks for it.

A small cell is merged into its neighbour rather than blanked, so no total gives it back (complementary suppression is not needed:
nothing was left out). Which cells were merged is in the record, so the hub can still sum: on the cells that all sites kept apart,
the sum over sites is exact before rounding.
"""

import math
import secrets
from collections.abc import Sequence

from sync.protocol.egress import MERGED

__all__ = ["discrete_laplace", "merge_small", "noisy", "rounded"]


def merge_small(counts: Sequence[int], least: int) -> tuple[int, ...] | None:
    """Cells of 0 or at least `least`; smaller ones joined to a neighbour and marked MERGED. None: too few rows for any cell."""
    groups = [[count, 1] for count in counts]
    while True:
        small = [i for i, (count, _) in enumerate(groups) if 0 < count < least]
        if not small:
            break
        if len(groups) == 1:
            return None
        # The smallest first: it needs a neighbour most, and the merge may lift another small cell as well.
        i = min(small, key=lambda at: groups[at][0])
        j = _neighbour(groups, i)
        low = min(i, j)
        groups[low : low + 2] = [[groups[i][0] + groups[j][0], groups[i][1] + groups[j][1]]]
    return tuple(cell for count, span in groups for cell in (count, *[MERGED] * (span - 1)))


def rounded(cells: Sequence[int], step: int, least: int) -> tuple[int, ...]:
    """Counts to the nearest multiple of `step`, never below `least` (0 and MERGED stay)."""
    if step <= 1:
        return tuple(cells)
    return tuple(c if c <= 0 else max(least, step * round(c / step)) for c in cells)


def noisy(cells: Sequence[int], epsilon: float, least: int) -> tuple[int, ...]:
    """Discrete Laplace noise of scale 1/epsilon on every cell that stands (0 too); small results become 0.

    One row changes one cell by one, so this is epsilon-DP for a histogram whose cells were fixed beforehand. Use it on counts
    that were not merged by looking at them.
    """
    return tuple(c if c == MERGED else _kept(c + discrete_laplace(epsilon), least) for c in cells)


def _kept(value: int, least: int) -> int:
    return value if value >= least else 0


def discrete_laplace(epsilon: float) -> int:
    """A whole number k with probability in proportion to exp(-epsilon |k|), from the system's randomness.

    It is the difference of two geometric variables (Ghosh, Roughgarden and Sundararajan 2009).
    """
    return _geometric(epsilon) - _geometric(epsilon)


def _geometric(epsilon: float) -> int:
    # Never 0, whose logarithm is infinite. From the system's randomness, since noise that can be guessed hides nothing.
    uniform = (secrets.randbits(53) + 1) / 2.0**53
    return math.floor(math.log(uniform) / -epsilon)


def _neighbour(groups: list[list[int]], i: int) -> int:
    """The smaller of the two neighbours that hold anything, else any."""
    around = [j for j in (i - 1, i + 1) if 0 <= j < len(groups)]
    # Joined to what holds rows: an empty neighbour would leave the cell as small as it is.
    return min(around, key=lambda j: (groups[j][0] == 0, groups[j][0]))

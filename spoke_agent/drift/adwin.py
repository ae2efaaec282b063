"""An early signal between windows: ADWIN (Bifet and Gavalda 2007) on the stream of confidences.

It notices sooner than a whole window that confidence has dropped. It is a hint in the verdict and never an alarm by itself.
"""

import math
from typing import Annotated

from msgspec import Meta

from model_formats.core.document import Value
from model_formats.core.runtime import Array

__all__ = ["Adwin"]

_DELTA = 0.002
_CHUNK = 32
_MOST = 128
"""Chunks remembered (4096 rows)."""
_LEAST = 5


class Adwin(Value):
    """Means of chunks of 32 rows since the last cut; a cut where an older part differs from the newer by more than chance."""

    chunks: tuple[float, ...] = ()
    rest: Annotated[tuple[float, ...], Meta(max_length=_CHUNK)] = ()
    fell: bool = False
    """The last cut was a fall, and no rise came since."""

    def after(self, values: Array) -> "Adwin":
        """The state after more confidences (0..1, NaN left out)."""
        rest = [*self.rest, *(float(v) for v in values if math.isfinite(v))]
        state = self
        while len(rest) >= _CHUNK:
            state = state._push(sum(rest[:_CHUNK]) / _CHUNK)
            rest = rest[_CHUNK:]
        return state.replace(rest=tuple(rest))

    def _push(self, mean: float) -> "Adwin":
        # Bounded, since this state is written to disk after every window.
        chunks = (*self.chunks, mean)[-_MOST:]
        cut = _cut(chunks)
        if cut is None:
            return self.replace(chunks=chunks)
        old, new = chunks[:cut], chunks[cut:]
        return Adwin(chunks=new, fell=sum(new) / len(new) < sum(old) / len(old))


def _cut(chunks: tuple[float, ...]) -> int | None:
    """The first place where both sides differ beyond the bound (theorem 3.1, with the variance)."""
    n = len(chunks)
    if n < 2 * _LEAST:
        return None
    mean = sum(chunks) / n
    variance = sum((c - mean) ** 2 for c in chunks) / n
    log = math.log(2 * math.log(n * _CHUNK) / _DELTA)
    left = 0.0
    total = sum(chunks)
    for i in range(1, n):
        # Running sums, so that all cuts cost one pass.
        left += chunks[i - 1]
        if i < _LEAST or n - i < _LEAST:
            continue
        harmonic = 1 / (1 / i + 1 / (n - i))
        bound = math.sqrt(2 / harmonic * variance * log) + 2 / (3 * harmonic * _CHUNK) * log
        if abs(left / i - (total - left) / (n - i)) > bound:
            return i
    return None

"""Random permutations without `numpy.random`, whose import alone costs four megabytes of memory."""

import hashlib

import numpy as np

from model_formats.core.runtime import Array

__all__ = ["shuffle", "shuffles"]


def shuffle(seed: str, rows: int) -> Array:
    """0 .. rows-1 in an order drawn from SHAKE-128 of the seed: the same on every machine."""
    found: Array = shuffles(seed, 1, rows)[0]
    return found


def shuffles(seed: str, times: int, rows: int) -> Array:
    """Many of them: [times, rows]."""
    drawn = np.frombuffer(hashlib.shake_128(seed.encode()).digest(4 * times * rows), "<u4").reshape(times, rows)
    return np.argsort(drawn, axis=1, kind="stable")

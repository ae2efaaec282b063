"""How much the weights of a quantized tensor moved, row by row and column by column: the contexts of the range coder.

After a fine-tune most int8 weights are as before or one step away. How often they move differs from row to row (rare words
hardly do) and from column to column (each has its own scale), so the delta carries a class for each, half a power of two apart,
and the sum of both chooses the probabilities. Measured on MiniLM: within 1 % of what finer classes, base values or neighbours
as further contexts give.
"""

import numpy as np

from model_formats.core.runtime import Array

__all__ = ["NEUTRAL", "SIZES", "UNCHANGED", "classes", "contexts"]

SIZES = 32
UNCHANGED = 0
"""Class of a row that is the base's, with nothing coded."""
NEUTRAL = 16
"""Class of an average column."""
_ONE = 21
"""Class of a row whose weights move by one step on average."""
_MIN_ROWS = 64
"""Columns get classes from so many changed rows on; below, the classes cost more than they save."""


def classes(change: Array) -> tuple[Array, Array | None]:
    """Classes of the rows, and of the columns if that pays, of differences [m, n] int8. For the encoder."""
    moved = np.abs(change.astype(np.int16))
    means = moved.mean(1)
    rows = np.where(means > 0, np.clip(_half_powers(means) + _ONE, 1, SIZES - 1), UNCHANGED).astype(np.uint8)
    live = moved[rows != UNCHANGED]
    if len(live) < _MIN_ROWS:
        return rows, None
    columns = np.clip(_half_powers(live.mean(0) / live.mean()) + NEUTRAL, 0, SIZES - 1)
    return rows, columns.astype(np.uint8)


def contexts(rows: Array, columns: Array | None, count: int) -> Array:
    """Context of each weight in the changed rows, [changed, count] uint8, 1 to 31."""
    live = rows[rows != UNCHANGED].astype(np.int16)[:, None]
    if columns is None:
        return np.broadcast_to(live.astype(np.uint8), (len(live), count))
    summed: Array = np.clip(live + (columns.astype(np.int16) - NEUTRAL), 1, SIZES - 1).astype(np.uint8)
    return summed


def _half_powers(values: Array) -> Array:
    powers: Array = np.round(2 * np.log2(np.maximum(values, 1e-6))).astype(np.int64)
    return powers

"""Differences of integers as byte planes: neighbours in a float differ in the low bytes, so the high planes are nearly empty.

Floats are ordered integers first (sign and magnitude to two's complement), so that a small step in value is a small integer.
"""

from typing import Any

import numpy as np

from model_formats.core.runtime import Array

__all__ = ["difference", "restore"]

_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}


def difference(base: bytes, target: bytes, width: int) -> bytes:
    """Residual planes of `target` against `base`, most significant plane first; both have equal length, a multiple of `width`."""
    old, new = (_ordered(np.frombuffer(data, _TYPES[width]), width) for data in (base, target))
    step = new - old
    top = step >> (8 * width - 1)
    folded = (step << 1) ^ (0 - top).astype(step.dtype)
    return _planes(folded, width)


def restore(base: bytes, planes: bytes, width: int) -> bytes:
    """The target again."""
    count = len(base) // width
    lanes = np.frombuffer(planes, np.uint8).reshape(width, count)[::-1]
    folded = np.ascontiguousarray(lanes.T).reshape(-1).view(_TYPES[width])
    step = (folded >> 1) ^ (0 - (folded & 1)).astype(folded.dtype)
    old = _ordered(np.frombuffer(base, _TYPES[width]), width)
    return _unordered(old + step, width).tobytes()


def _planes(values: Array, width: int) -> bytes:
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, width)[:, ::-1].T).tobytes()


def _ordered(values: Array, width: int) -> Array:
    if width == 1:
        return values
    sign = np.array(1 << (8 * width - 1), values.dtype)
    return np.where(values & sign, ~values, values | sign)


def _unordered(values: Array, width: int) -> Array:
    if width == 1:
        return values
    sign = np.array(1 << (8 * width - 1), values.dtype)
    return np.where(values & sign, values ^ sign, ~values)

"""Corruptions of inputs as they happen at sites, in plain NumPy: for the accuracy estimate, for drift tests and for the demo's
turned scanner.

Images are [n, c, h, w]. Each function returns float32 in the range of its input.
"""

from collections.abc import Callable, Mapping

import numpy as np

from model_formats.build.dataset import Corruption
from model_formats.core.runtime import Array

__all__ = ["blur", "image_corruptions", "shift", "table_corruptions", "turn"]


def turn(images: Array, degrees: float) -> Array:
    """Turn about the centre, counter-clockwise, bilinear, zero outside."""
    height, width = images.shape[2:]
    angle, rows, columns = np.deg2rad(degrees), *np.mgrid[:height, :width].astype(float)
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    from_y = np.cos(angle) * y + np.sin(angle) * x + (height - 1) / 2
    from_x = -np.sin(angle) * y + np.cos(angle) * x + (width - 1) / 2
    return _sample(images, from_y, from_x)


def shift(images: Array, down: float, right: float) -> Array:
    """Move by fractions of a pixel, zero outside."""
    rows, columns = np.mgrid[: images.shape[2], : images.shape[3]].astype(float)
    return _sample(images, rows - down, columns - right)


def blur(images: Array, deviation: float) -> Array:
    """Gaussian blur, `deviation` in pixels, edges repeated."""
    reach = max(1, int(np.ceil(3 * deviation)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    for axis in (2, 3):
        widths = [(0, 0)] * axis + [(reach, reach)] + [(0, 0)] * (3 - axis)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(images, widths, mode="edge"), len(kernel), axis=axis)
        images = windows @ (kernel / kernel.sum())
    return images.astype(np.float32)


def image_corruptions(tensor: str, low: float, high: float) -> tuple[Corruption, ...]:
    """Eight families at several strengths each, for one image input with values in `low..high`."""
    span = high - low
    families: tuple[Family, ...] = (
        ("turned", turn, (-40, -25, -12, 10, 20, 30, 45)),
        ("blurred", blur, (0.5, 0.7, 0.9, 1.2)),
        ("noisy", lambda a, s: a + s * span * _noise(a), (0.1, 0.2, 0.3, 0.45)),
        ("moved", lambda a, s: shift(a, s, -s / 2), (-2, -1, 0.5, 1, 1.5)),
        ("faded", lambda a, s: low + (a - low) * s, (0.25, 0.5, 0.75, 1.4)),
        ("brightened", lambda a, s: a + s * span, (0.15, 0.3, 0.5)),
        ("holed", lambda a, s: np.where(_uniform(a) < s, np.float32(low), a), (0.2, 0.35, 0.5)),
        ("covered", lambda a, s: np.where(np.arange(a.shape[3]) < s * a.shape[3], np.float32(low), a), (0.15, 0.25, 0.4)),
    )
    return tuple((name, _on(tensor, change, s, low, high)) for name, change, strengths in families for s in strengths)


def table_corruptions(tensor: str, deviation: Array) -> tuple[Corruption, ...]:
    """Four families for a table of numbers; `deviation` [columns] is each column's standard deviation."""
    families: tuple[Family, ...] = (
        ("noisy", lambda a, s: a + s * deviation * _noise(a), (0.3, 0.7, 1.5, 3.0)),
        ("offset", lambda a, s: a + s * deviation, (-1.5, -0.5, 0.5, 1.5)),
        ("scaled", lambda a, s: a * s, (0.5, 0.8, 1.25, 2.0)),
        ("zeroed", lambda a, s: np.where(_uniform(a) < s, np.float32(0), a), (0.1, 0.3, 0.6)),
    )
    return tuple((name, _on(tensor, change, s, -np.inf, np.inf)) for name, change, strengths in families for s in strengths)


Family = tuple[str, Callable[[Array, float], Array], tuple[float, ...]]


def _on(
    tensor: str, change: Callable[[Array, float], Array], strength: float, low: float, high: float
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    def corrupt(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {**inputs, tensor: np.clip(change(inputs[tensor], strength), low, high).astype(np.float32)}

    return corrupt


def _noise(like: Array) -> Array:
    return np.asarray(np.random.default_rng(7).standard_normal(like.shape, dtype=np.float32))


def _uniform(like: Array) -> Array:
    return np.asarray(np.random.default_rng(11).random(like.shape, dtype=np.float32))


def _sample(images: Array, rows: Array, columns: Array) -> Array:
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - top, columns - left
    padded = np.pad(images, ((0, 0), (0, 0), (1, 2), (1, 2)))
    height, width = images.shape[2:]

    def at(r: Array, c: Array) -> Array:
        inside: Array = padded[:, :, np.clip(r + 1, 0, height + 1), np.clip(c + 1, 0, width + 1)]
        return inside

    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    found: Array = (upper * (1 - down) + lower * down).astype(np.float32)
    return found

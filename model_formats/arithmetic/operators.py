"""Operators that the ONNX reference evaluator would compute in the type of their inputs, or slowly.

Rounding to 8 bits happens in float32, as the specification says and engines do: half of a step must fall the same way. Sums of
integers are made by float64 products, which are exact below 2^53 whatever the order. Source: onnx/docs/Operators.md.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["own_operators"]

Array = np.ndarray[Any, np.dtype[Any]]
_PER_UNIT, _TERMS = 64, 9
"""Points of the table of erf in a unit, and terms of its series around each: errors of 1e-16."""


def _along(vector: Any, like: Array, axis: int | None) -> Array:
    """A value a channel, shaped so that it stretches over `axis` of `like`."""
    found = np.asarray(vector)
    if found.ndim != 1 or found.size == 1 or like.ndim < 2:
        return found.reshape(()) if found.size == 1 else found
    return found.reshape([-1 if i == (1 if axis is None else axis) % like.ndim else 1 for i in range(like.ndim)])


def _to_steps(x: Array, scale: Any, zero: Any, kind: Any, axis: int | None) -> Array:
    """Steps of a scale: divided and rounded half to even in float32."""
    steps = np.rint(x.astype(np.float32) / _along(scale, x, axis).astype(np.float32))
    limits = np.iinfo(kind)
    return (steps.astype(np.float64) + _along(zero, x, axis)).clip(limits.min, limits.max).astype(kind)


def _less_zero(x: Array, zero: Any, axis: int) -> Array:
    """Integers as float64, without their zero point: of all, or of each row (the left side) or column (the right side)."""
    if zero is None or np.size(zero) == 0:
        return x.astype(np.float64)
    plain = np.asarray(zero, np.float64)
    if plain.ndim == 1 and plain.size > 1:
        plain = plain.reshape((-1, 1) if axis == -2 else (1, -1))
    return x.astype(np.float64) - (plain.reshape(()) if plain.size == 1 else plain)


def _to_int32(sums: Array) -> Array:
    """Sums that wrap around like the engines' 32-bit accumulators."""
    return sums.astype(np.int64).astype(np.int32)


def _product(a: Array, b: Array) -> Array:
    """As `a @ b`; many small products by one matrix are one large one."""
    if a.ndim > 2 and b.ndim == 2:
        a, shape = a.reshape(-1, a.shape[-1]), (*a.shape[:-1], b.shape[-1])
        return np.asarray(a @ b).reshape(shape)
    return np.asarray(a @ b)


def _erf(x: Array) -> Array:
    """By Taylor series around the nearest point of a table."""
    near = np.rint(x.clip(-6, 6) * _PER_UNIT) / _PER_UNIT
    points: Array = np.arange(-6 * _PER_UNIT, 6 * _PER_UNIT + 1) / _PER_UNIT
    place, step = np.rint((near + 6) * _PER_UNIT).astype(np.int64), x.clip(-6, 6) - near
    slope = np.array([2 / math.sqrt(math.pi) * math.exp(-p * p) for p in points])
    found, power, before, hermite = (
        np.array([math.erf(p) for p in points])[place],
        step,
        np.zeros_like(points),
        np.ones_like(points),
    )
    for n in range(1, _TERMS):
        found = found + (slope * hermite)[place] * power
        before, hermite = hermite, -2 * points * hermite - 2 * (n - 1) * before  # of the derivatives of exp(-x^2)
        power = power * step / (n + 1)
    made: Array = found
    return made


def own_operators(nudge: Callable[[Array], Array] = lambda x: x) -> list[type]:
    """Classes for `onnx.reference.ReferenceEvaluator(new_ops=...)`: named as their operators, as it wants it.

    `nudge` changes what is about to be rounded to 8 bits, for asking how much a last bit matters.
    """
    from onnx.reference.op_run import OpRun

    class QuantizeLinear(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any, scale: Any, zero: Any = None, axis: Any = None, **rest: Any) -> tuple[Array]:
            _refuse_blocks(rest, scale, x)
            zero = np.zeros((), np.uint8) if zero is None else zero
            return (_to_steps(nudge(x), scale, zero, zero.dtype, axis),)

    class DequantizeLinear(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any, scale: Any, zero: Any = None, axis: Any = None, **rest: Any) -> tuple[Array]:
            _refuse_blocks(rest, scale, x)
            steps = x.astype(np.float64) if zero is None else x.astype(np.float64) - _along(zero, x, axis)
            return (steps * _along(scale, x, axis).astype(np.float64),)

    class DynamicQuantizeLinear(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any) -> tuple[Array, Array, Array]:
            low, high = np.float32(x.min(initial=0)), np.float32(x.max(initial=0))
            scale = np.float32(1) if low == high else (high - low) / np.float32(255)
            zero = np.rint((-low / scale).clip(0, 255)).astype(np.uint8)
            return _to_steps(nudge(x), scale, zero, np.uint8, None), np.array(scale, np.float64), np.array(zero)

    class MatMulInteger(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> tuple[Array]:
            return (_to_int32(_product(_less_zero(a, a_zero, -2), _less_zero(b, b_zero, -1))),)

    class Erf(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any) -> tuple[Array]:
            return (_erf(x.astype(np.float64)),)

    class Conv(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any, w: Any, bias: Any = None, **attributes: Any) -> tuple[Array]:
            found = _convolve(x, w, attributes)
            return (found if bias is None else found + bias.reshape([-1, *[1] * (x.ndim - 2)]),)

    class ConvInteger(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None, **attributes: Any) -> tuple[Array]:
            weights = _less_zero(w.reshape(len(w), -1), w_zero, -2).reshape(w.shape)
            return (_to_int32(_convolve(_less_zero(x, x_zero, 0), weights, attributes)),)

    class MaxPool(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any, kernel_shape: Any = None, **attributes: Any) -> tuple[Array]:
            if len(self.onnx_node.output) > 1:
                raise NotImplementedError("places of maxima")
            low = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
            windows = [seen for _, seen in _windows(x, kernel_shape, attributes, low)]
            return (np.maximum.reduce(windows),)

    return [QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, MatMulInteger, Conv, ConvInteger, Erf, MaxPool]


def _convolve(x: Array, w: Array, attributes: dict[str, Any]) -> Array:
    """A product for each place of the kernel, summed in their order: little memory, and only matrix products."""
    group = attributes.get("group") or 1
    weights = w.reshape(group, len(w) // group, *w.shape[1:])
    found: Any = 0.0
    for place, seen in _windows(x, w.shape[2:], attributes, 0.0):
        at: Any = (..., *place)
        found = found + weights[at] @ seen.reshape(len(x), group, w.shape[1], -1)
        sizes = seen.shape[2:]
    made: Array = found.reshape(len(x), len(w), *sizes)
    return made


def _windows(x: Array, kernel: Any, attributes: dict[str, Any], fill: Any) -> Iterator[tuple[tuple[int, ...], Array]]:
    """What each place of a sliding kernel sees, in the shape of the output."""
    dims = len(kernel)
    strides, dilations = (attributes.get(name) or [1] * dims for name in ("strides", "dilations"))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(x.shape[2:], reach, strides, attributes)
    sizes = [(n + a + b - r) // s + 1 for n, (a, b), r, s in zip(x.shape[2:], pads, reach, strides, strict=True)]
    if attributes.get("ceil_mode"):
        sizes = [-(-(n + a + b - r) // s) + 1 for n, (a, b), r, s in zip(x.shape[2:], pads, reach, strides, strict=True)]
        sizes = [k - ((k - 1) * s >= n + a) for k, s, n, (a, _) in zip(sizes, strides, x.shape[2:], pads, strict=True)]
    ends = [max(b, (k - 1) * s + r - n - a) for k, s, r, n, (a, b) in zip(sizes, strides, reach, x.shape[2:], pads, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *((a, b) for (a, _), b in zip(pads, ends, strict=True))], constant_values=fill)
    for place in np.ndindex(*kernel):
        starts = [p * d for p, d in zip(place, dilations, strict=True)]
        window = tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, sizes, strides, strict=True))
        yield place, padded[(slice(None), slice(None), *window)]


def _pads(sizes: Any, reach: list[int], strides: Any, attributes: dict[str, Any]) -> list[tuple[int, int]]:
    """Before and after, by dimension."""
    dims, auto = len(reach), attributes.get("auto_pad") or "NOTSET"
    if auto in ("NOTSET", "VALID"):
        pads = (attributes.get("pads") if auto == "NOTSET" else None) or [0] * 2 * dims
        return [(pads[i], pads[i + dims]) for i in range(dims)]
    wanted = [max(0, (-(-n // s) - 1) * s + r - n) for n, r, s in zip(sizes, reach, strides, strict=True)]
    return [(n // 2, n - n // 2) if auto == "SAME_UPPER" else (n - n // 2, n // 2) for n in wanted]


def _refuse_blocks(rest: dict[str, Any], scale: Any, x: Array) -> None:
    if rest.get("block_size") or (np.ndim(scale) > 1 and np.shape(scale) != x.shape):
        raise NotImplementedError("scales of blocks")

"""ONNX operators in torch, as our exports and quantizers use them (opsets 13 to 23). Rounding lets slopes through.

Each takes the node's inputs (None where one is left out) and its attributes. Source: onnx/docs/Operators.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["OPERATORS"]

Attributes = Mapping[str, Any]


def _straight(x: Any) -> Any:
    """Round, with the slope of the identity (straight-through estimator, Bengio et al. 2013)."""
    return x + (x.round() - x).detach()


def _along(x: Any, like: Any, axis: int) -> Any:
    """A per-channel vector, shaped so that it stretches over `axis` of `like`."""
    return (
        x
        if x.dim() != 1 or x.numel() == 1 or like.dim() < 2
        else x.reshape([-1 if i == axis % like.dim() else 1 for i in range(like.dim())])
    )


def _ints(x: Any) -> list[int]:
    return [int(v) for v in x.reshape(-1).tolist()]


def _conv(v: Any, a: Attributes) -> Any:
    import torch.nn.functional as f

    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        raise NotImplementedError("auto_pad")
    dims, weight = v[0].dim() - 2, v[1]
    pads = list(a.get("pads", [0] * 2 * dims))
    padded = f.pad(v[0], [p for i in reversed(range(dims)) for p in (pads[i], pads[i + dims])])
    call = {1: f.conv1d, 2: f.conv2d, 3: f.conv3d}[dims]
    ones = [1] * dims
    return call(
        padded, weight, v[2] if len(v) > 2 else None, a.get("strides", ones), 0, a.get("dilations", ones), a.get("group", 1)
    )


def _max_pool(v: Any, a: Attributes) -> Any:
    import torch.nn.functional as f

    dims = v[0].dim() - 2
    pads = list(a.get("pads", [0] * 2 * dims))
    padded = f.pad(v[0], [p for i in reversed(range(dims)) for p in (pads[i], pads[i + dims])], value=float("-inf"))
    call = {1: f.max_pool1d, 2: f.max_pool2d, 3: f.max_pool3d}[dims]
    return call(
        padded, a["kernel_shape"], a.get("strides", [1] * dims), 0, a.get("dilations", [1] * dims), bool(a.get("ceil_mode", 0))
    )


def _gemm(v: Any, a: Attributes) -> Any:
    left = v[0].T if a.get("transA") else v[0]
    right = v[1].T if a.get("transB") else v[1]
    product = a.get("alpha", 1.0) * (left @ right)
    return product + a.get("beta", 1.0) * v[2] if len(v) > 2 else product


def _layer_norm(v: Any, a: Attributes) -> Any:
    import torch.nn.functional as f

    shape = v[0].shape[a.get("axis", -1) % v[0].dim() :]
    return f.layer_norm(v[0], shape, v[1], v[2] if len(v) > 2 else None, a.get("epsilon", 1e-5))


def _batch_norm(v: Any, a: Attributes) -> Any:
    import torch.nn.functional as f

    return f.batch_norm(v[0], v[3], v[4], v[1], v[2], training=False, eps=a.get("epsilon", 1e-5))


def _reshape(v: Any, a: Attributes) -> Any:
    wanted = _ints(v[1])
    if not a.get("allowzero"):
        wanted = [v[0].shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return v[0].reshape(wanted)


def _slice(v: Any, a: Attributes) -> Any:
    starts, ends = _ints(v[1]), _ints(v[2])
    axes = _ints(v[3]) if len(v) > 3 and v[3] is not None else list(range(len(starts)))
    steps = _ints(v[4]) if len(v) > 4 else [1] * len(starts)
    if any(s < 1 for s in steps):
        raise NotImplementedError("a slice backwards")
    found = v[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        found = found[tuple([slice(None)] * (axis % found.dim()) + [slice(start, end, step)])]
    return found


def _gather(v: Any, a: Attributes) -> Any:
    axis, at = a.get("axis", 0) % v[0].dim(), v[1].long()
    picked = v[0].index_select(axis, at.reshape(-1) % v[0].shape[axis])
    return picked.reshape([*v[0].shape[:axis], *at.shape, *v[0].shape[axis + 1 :]])


def _unsqueeze(v: Any, a: Attributes) -> Any:
    axes = _ints(v[1])
    found, rank = v[0], v[0].dim() + len(axes)
    for axis in sorted(n % rank for n in axes):
        found = found.unsqueeze(axis)
    return found


def _squeeze(v: Any, a: Attributes) -> Any:
    return v[0].squeeze(tuple(_ints(v[1]))) if len(v) > 1 else v[0].squeeze()


def _reduced(name: str) -> Callable[[Any, Attributes], Any]:
    def reduce(v: Any, a: Attributes) -> Any:
        axes = _ints(v[1]) if len(v) > 1 and v[1] is not None else list(a.get("axes", range(v[0].dim())))
        kept = bool(a.get("keepdims", 1))
        return v[0].norm(dim=axes, keepdim=kept) if name == "norm" else getattr(v[0], name)(dim=axes, keepdim=kept)

    return reduce


def _cast(v: Any, a: Attributes) -> Any:
    import torch

    kinds = {1: torch.float32, 6: torch.float32, 7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float32}
    return v[0].to(kinds[a["to"]])  # int32 holds sums of quantized products here: they stay exact as float32


def _clip(v: Any, a: Attributes) -> Any:
    low, high = (v[i] if len(v) > i else None for i in (1, 2))
    found = v[0] if low is None else v[0].maximum(low)
    return found if high is None else found.minimum(high)


def _quantize(v: Any, a: Attributes) -> Any:
    axis, (low, high) = a.get("axis", 1), a["range"]
    scale, zero = (_along(x, v[0], axis) for x in (v[1], v[2] if len(v) > 2 else v[1] * 0))
    return (_straight(v[0] / scale) + zero).clamp(low, high)


def _dequantize(v: Any, a: Attributes) -> Any:
    axis = a.get("axis", 1)
    scale = _along(v[1], v[0], axis)
    return ((v[0] - _along(v[2], v[0], axis)) if len(v) > 2 else v[0]) * scale


def _dynamic(v: Any, a: Attributes) -> Any:
    low, high = v[0].detach().min().clamp(max=0.0), v[0].detach().max().clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round().clamp(0, 255)
    return (_straight(v[0] / scale) + zero).clamp(0, 255), scale, zero


def _matmul_integer(v: Any, a: Attributes) -> Any:
    left = v[0] - v[2] if len(v) > 2 else v[0]
    return left @ (v[1] - v[3] if len(v) > 3 else v[1])


def _shape(v: Any, a: Attributes) -> Any:
    import torch

    return torch.tensor(list(v[0].shape)[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _concat(v: Any, a: Attributes) -> Any:
    import torch

    return torch.cat(list(v), a["axis"])


def _where(v: Any, a: Attributes) -> Any:
    import torch

    return torch.where(v[0].bool(), v[1], v[2])


def _gelu(v: Any, a: Attributes) -> Any:
    import torch.nn.functional as f

    return f.gelu(v[0], approximate=a.get("approximate", b"none").decode())


OPERATORS: Mapping[str, Callable[[Any, Attributes], Any]] = {
    "Add": lambda v, a: v[0] + v[1],
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda v, a: v[0] / v[1],
    "DynamicQuantizeLinear": _dynamic,
    "Equal": lambda v, a: v[0] == v[1],
    "Erf": lambda v, a: v[0].erf(),
    "Expand": lambda v, a: v[0] * v[0].new_ones(_ints(v[1])),
    "Flatten": lambda v, a: v[0].reshape(v[0].shape[: a.get("axis", 1)].numel(), -1),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda v, a: v[0].mean(dim=tuple(range(2, v[0].dim())), keepdim=True),
    "Identity": lambda v, a: v[0],
    "LayerNormalization": _layer_norm,
    "MatMul": lambda v, a: v[0] @ v[1],
    "MatMulInteger": _matmul_integer,
    "MaxPool": _max_pool,
    "Mul": lambda v, a: v[0] * v[1],
    "Not": lambda v, a: ~v[0],
    "Pow": lambda v, a: v[0] ** v[1],
    "QuantizeLinear": _quantize,
    "ReduceL2": _reduced("norm"),
    "ReduceMean": _reduced("mean"),
    "ReduceSum": _reduced("sum"),
    "Relu": lambda v, a: v[0].relu(),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda v, a: v[0].sigmoid(),
    "Slice": _slice,
    "Softmax": lambda v, a: v[0].softmax(a.get("axis", -1)),
    "Sqrt": lambda v, a: v[0].sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda v, a: v[0] - v[1],
    "Tanh": lambda v, a: v[0].tanh(),
    "Transpose": lambda v, a: v[0].permute(a.get("perm", list(reversed(range(v[0].dim()))))),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}

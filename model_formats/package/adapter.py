"""The head that a site may replace, and the anchors that keep a fit from forgetting what the hub taught.

The head is `output = features @ weight + bias`, weight [d, k], bias [k]. An adapter is an ONNX Runtime adapter file that
replaces both initializers for the requests that ask for it; the signed base file stays byte-exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from model_formats.core.array_file import ArraysRefused, read_arrays, write_arrays
from model_formats.core.engine_imports import import_onnxruntime
from model_formats.core.runtime import Array
from model_formats.documents.package_spec import AdapterPoint

__all__ = ["Anchors", "Head", "read_anchors", "write_adapter", "write_anchors"]

MAX_BYTES = 32 << 20
_INPUT = "input/"


@dataclass(frozen=True, slots=True)
class Head:
    """`weight` [d, k] and `bias` [k], float32."""

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class Anchors:
    """`anchors.npz`: the hub's head, and features with labels of hub-owned rows (never of a site's)."""

    features: Array
    """[m, d] float16, from the quantized trunk."""
    labels: Array
    """[m] int64: class index. For regression [m] float32: the target."""
    head: Head
    inputs: Mapping[str, Array] = field(default_factory=dict)
    """The same rows as the model takes them, by input: for fitting the whole model. Empty where they would be too large."""


def write_anchors(path: Path, anchors: Anchors) -> None:
    """Write `anchors.npz`."""
    write_arrays(
        path,
        {
            "features": anchors.features.astype(np.float16),
            "labels": anchors.labels,
            "weight": anchors.head.weight,
            "bias": anchors.head.bias,
            **{_INPUT + name: array for name, array in anchors.inputs.items()},
        },
    )


def read_anchors(path: Path) -> Anchors:
    """Read `anchors.npz`; a spoke needs no ONNX parser to fit a head.

    Raises ArraysRefused when shapes disagree or a number is not finite.
    """
    found = read_arrays(path, max_bytes=MAX_BYTES)
    inputs = {name.removeprefix(_INPUT): found.pop(name) for name in [n for n in found if n.startswith(_INPUT)]}
    if set(found) != {"features", "labels", "weight", "bias"}:
        raise ArraysRefused(f"{path.name}: holds {sorted(found)}, not features, labels, weight and bias")
    features, labels, weight, bias = (found[n] for n in ("features", "labels", "weight", "bias"))
    fits = (
        weight.ndim == 2 and bias.shape == weight.shape[1:] and features.shape == (len(labels), len(weight)) and labels.ndim == 1
    )
    fits = fits and all(a.ndim and len(a) == len(labels) and a.dtype.kind in "fiub" for a in inputs.values())
    fits = fits and all(a.dtype.kind in "fi" for a in (features, labels, weight, bias))
    if not fits or not all(np.isfinite(a).all() for a in (features, labels, weight, bias, *inputs.values())):
        raise ArraysRefused(f"{path.name}: the head and the anchors do not fit each other, or hold a number that is not finite")
    return Anchors(features, labels, Head(weight.astype(np.float32), bias.astype(np.float32)), inputs)


def write_adapter(path: Path, point: AdapterPoint, weight: Array, bias: Array, version: int = 1) -> None:
    """Write an ONNX Runtime adapter file for `point`: `weight` [d, k], `bias` [k], kept as float32; `version` is the base's.

    Raises ValueError when shapes disagree or a number is not finite. Writes in place: the caller renames.
    """
    if weight.ndim != 2 or bias.shape != weight.shape[1:] or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"head of shapes {weight.shape} and {bias.shape}, or not finite, cannot be an adapter")
    ort = import_onnxruntime()
    form = ort.AdapterFormat()
    form.set_adapter_version(1)
    form.set_model_version(version)
    values = {point.weight: weight, point.bias: bias}
    form.set_parameters({n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a, np.float32)) for n, a in values.items()})
    form.export_adapter(str(path))

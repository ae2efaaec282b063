"""An ONNX file as a torch function of its inputs and of changes to its weights.

INT8 files are fitted as they are: integer weights are changed in their own steps, under the scales that the hub chose, and
rounded on the way forward. So what is learned is what the file can say, and nothing is quantized afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_formats.core.runtime import Array
from model_formats.export.graph import constants, load_graph, save_graph
from model_formats.finetune.errors import NotDifferentiable
from model_formats.finetune.operators import OPERATORS

__all__ = ["Network", "Weight"]

_LAYERS = ("Conv", "Gemm", "MatMul", "MatMulInteger")
_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}
_SEVEN_BITS = 64
"""Weights that stay within it were made so that no CPU's sums saturate; they stay within it."""


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer that may change. `step`: what one unit of the file's numbers is worth (1 for floats), per channel."""

    name: str
    shape: tuple[int, ...]
    step: Array
    kind: str
    """NumPy's name of the type in the file."""
    matrix: bool
    """Of two dimensions or more, in a layer: low-rank changes are for these."""
    limits: tuple[int, int] | None
    """Smallest and largest integer; None for floats."""


class Network:
    """Reads the file once; `run` is differentiable in `changes`."""

    def __init__(self, path: Path) -> None:
        """Raises NotDifferentiable on an operator it does not know, SourceRefused on a damaged file."""
        import onnx

        self._model = load_graph(path)
        self._held = constants(self._model)
        self._makers = {name: node for node in self._model.graph.node for name in node.output}
        self._attributes = [
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} | self._range(node)
            for node in self._model.graph.node
        ]
        self._tensors = {name: _tensor(array) for name, array in self._held.items()}
        unknown = sorted({n.op_type for n in self._model.graph.node if n.op_type not in (*OPERATORS, "Constant")})
        if unknown:
            raise NotDifferentiable(f"{path.name}: operators {', '.join(unknown)} cannot be fitted")
        self.weights = tuple(self._weights())

    def run(self, inputs: Mapping[str, Any], output: str, changes: Mapping[str, Any]) -> Any:
        """One output. `changes`: by initializer, in real units (already multiplied by the step). Raises NotDifferentiable."""
        from onnx import numpy_helper

        found = {
            **self._tensors,
            **inputs,
            **{w.name: self._changed(w, changes[w.name]) for w in self.weights if w.name in changes},
        }
        for node, attributes in zip(self._model.graph.node, self._attributes, strict=True):
            if node.op_type == "Constant":
                found[node.output[0]] = _tensor(numpy_helper.to_array(attributes["value"]))
                continue
            given = [found[name] if name else None for name in node.input]
            try:
                made = OPERATORS[node.op_type](given, attributes)
            except (NotImplementedError, RuntimeError, KeyError, IndexError) as e:
                raise NotDifferentiable(f"{node.op_type} {node.name or node.output[0]}: {str(e).splitlines()[0][:200]}") from e
            found.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=False))
        return found[output]

    def save(self, path: Path, changes: Mapping[str, Any]) -> None:
        """The file with changed weights; everything else stays byte for byte."""
        from onnx import numpy_helper

        kept = {i.name: i for i in self._model.graph.initializer}
        before = {w.name: kept[w.name].SerializeToString() for w in self.weights if w.name in changes}
        try:
            for weight in (w for w in self.weights if w.name in changes):
                fresh = self._changed(weight, changes[weight.name]).detach().numpy()
                array = np.rint(fresh) if weight.kind in _RANGES else fresh
                kept[weight.name].CopyFrom(numpy_helper.from_array(array.astype(weight.kind).reshape(weight.shape), weight.name))
            save_graph(self._model, path)
        finally:
            for name, data in before.items():
                kept[name].ParseFromString(data)

    def _changed(self, weight: Weight, change: Any) -> Any:
        import torch

        fresh = self._tensors[weight.name] + change.reshape(weight.shape) / torch.from_numpy(weight.step)
        if weight.limits is None:
            return fresh
        fresh = fresh.clamp(*weight.limits)
        return fresh + (fresh.round() - fresh).detach()

    def _weights(self) -> list[Weight]:
        found: dict[str, Weight] = {}
        for node in self._model.graph.node:
            if node.op_type in _LAYERS:
                for place, name in list(enumerate(node.input))[1 : 2 if node.op_type.startswith("MatMul") else 3]:
                    weight = self._weight(name, matrix=place == 1)
                    if weight is not None:
                        found.setdefault(weight.name, weight)
        return list(found.values())

    def _weight(self, name: str, *, matrix: bool) -> Weight | None:
        """The initializer behind a layer's input, itself or through DequantizeLinear; None when it is computed."""
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in self._held:
            axis = next((a.i for a in maker.attribute if a.name == "axis"), 1)
            return self._known(maker.input[0], self._held[maker.input[1]], axis, matrix=matrix)
        if name not in self._held:
            return None
        if self._held[name].dtype == np.float32:
            return self._known(name, np.ones((), np.float32), 0, matrix=matrix)
        step = self._held.get(name.removesuffix("_quantized") + "_scale")  # as the dynamic quantizer names them
        return None if step is None else self._known(name, step, -1, matrix=matrix)

    def _known(self, name: str, step: Array, axis: int, *, matrix: bool) -> Weight:
        held = self._held[name]
        if step.ndim == 1 and step.size > 1 and held.ndim > 1:
            step = step.reshape([-1 if i == axis % held.ndim else 1 for i in range(held.ndim)])
        elif step.size == 1:
            step = step.reshape(())
        limits = _RANGES.get(held.dtype.name)
        if held.dtype == np.int8 and np.abs(held.astype(np.int32)).max(initial=0) <= _SEVEN_BITS:
            limits = (-_SEVEN_BITS, _SEVEN_BITS)
        return Weight(name, held.shape, step.astype(np.float32), held.dtype.name, matrix and held.ndim > 1, limits)

    def _range(self, node: Any) -> dict[str, Any]:
        if node.op_type != "QuantizeLinear":
            return {}
        zero = self._held.get(node.input[2]) if len(node.input) > 2 else None
        return {"range": _RANGES["uint8" if zero is None else zero.dtype.name]}


def _tensor(array: Array) -> Any:
    """Small integers stand for quantized numbers and become floats; int64 and bool are indexes, shapes and masks."""
    import torch

    wide = array.astype(np.float32) if array.dtype.name in _RANGES else array
    return torch.from_numpy(np.ascontiguousarray(wide).reshape(wide.shape).copy())

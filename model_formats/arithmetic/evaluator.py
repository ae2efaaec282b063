"""Evaluates a graph in float64, so that the result does not depend on the CPU.

Kernels of engines differ in the last bits of float32 and in sums that saturate. Here only the last bit of a float64 can differ,
which is eight orders of magnitude below what is compared or kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_formats.arithmetic.operators import own_operators
from model_formats.core.errors import AuthorError
from model_formats.core.runtime import Array
from model_formats.export.graph import load_graph

__all__ = ["Evaluator", "NotEvaluable"]

_FLOAT, _DOUBLE = 1, 11
"""Numbers of element types in onnx.proto."""
_NUDGE = 2.0**-20
"""Eight last places of a float32: what sums of a few hundred products differ by when their order does."""


class NotEvaluable(AuthorError):
    """A graph holds an operator that the ONNX reference does not know."""

    code = "not_evaluable"
    hint = "Export with operators of the default ONNX domain."


class Evaluator:
    """A model file, evaluated by the ONNX reference in float64. Slow beside an engine, and the same on every CPU.

    With a `nudge` (a seed) every number is off by some last bits of a float32 before it is rounded to 8 bits, at random: what
    comes out differs from the file's meaning as much as right kernels differ from one another.
    """

    def __init__(self, path: Path, nudge: int | None = None) -> None:
        """Raises NotEvaluable, SourceRefused."""
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        self._name, self._nudge, self._random = path.name, nudge, np.random.default_rng(nudge or 0)
        model = load_graph(path)
        self._kinds = {o.name: helper.tensor_dtype_to_np_dtype(o.type.tensor_type.elem_type) for o in model.graph.output}
        _widen(model.graph)
        try:
            self._reference = ReferenceEvaluator(model, new_ops=own_operators(self._nudged))
        except Exception as e:  # the reference raises many kinds for what it does not know
            raise NotEvaluable(f"{path.name}: {_first_line(e)}") from e

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """The asked outputs (all when None), in the types that the file declares. Raises NotEvaluable."""
        names = list(self._kinds) if outputs is None else list(outputs)
        found = self._evaluate(inputs, names, every=False)
        return [np.asarray(found[name]).astype(self._kinds[name]) for name in names]

    def tensors(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every tensor that is computed on the way, and the inputs, by name. Raises NotEvaluable."""
        return {name: np.asarray(a) for name, a in self._evaluate(inputs, None, every=True).items() if a is not None}

    def _nudged(self, x: Array) -> Array:
        return x if self._nudge is None else x * (1 + _NUDGE * (self._random.integers(0, 2, x.shape) * 2.0 - 1))

    def _evaluate(self, inputs: Mapping[str, Array], names: list[str] | None, *, every: bool) -> dict[str, Any]:
        wide = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in inputs.items()}
        self._random = np.random.default_rng(self._nudge or 0)
        try:
            with np.errstate(all="ignore"):  # infinities are what graphs say (masks); what is wrong shows in the outputs
                made = self._reference.run(names, wide, intermediate=every)
        except Exception as e:  # as above
            raise NotEvaluable(f"{self._name}: {_first_line(e)}") from e
        return dict(made) if every else dict(zip(names or [], made, strict=True))


def _widen(graph: Any) -> None:
    """Make every float32 of a graph a float64: weights, constants, and casts to it."""
    from onnx import numpy_helper

    for tensor in _tensors(graph):
        if tensor.data_type == _FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in _nodes(graph):
        for attribute in node.attribute:
            if attribute.name == "to" and node.op_type == "Cast" and attribute.i == _FLOAT:
                attribute.i = _DOUBLE


def _tensors(graph: Any) -> Iterator[Any]:
    for one in _graphs(graph):
        yield from one.initializer
        yield from (a.t for node in one.node for a in node.attribute if a.HasField("t"))


def _nodes(graph: Any) -> Iterator[Any]:
    return (node for one in _graphs(graph) for node in one.node)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and the ones within its nodes."""
    yield graph
    for attribute in (a for node in graph.node for a in node.attribute):
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graphs(inner)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"

"""Checks each ONNX graph: refuses what a spoke cannot or must not run, and removes metadata that reveals its origin."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model_formats.export.source import SourceRefused

__all__ = ["OPSETS", "constants", "load_graph", "refuse_unsafe", "rename", "save_graph", "strip"]

OPSETS = range(13, 24)
"""Opsets of the default domain that the engines of our lowest supported versions run; 13 is where per-channel QDQ begins."""
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


def load_graph(path: Path) -> Any:
    """An `onnx.ModelProto` from one file. Raises SourceRefused when it is not ONNX."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(str(path))
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as e:
        raise SourceRefused(f"{path.name}: not a readable ONNX file: {str(e)[:200]}") from e


def save_graph(model: Any, path: Path) -> None:
    """Check and write as one file. Raises SourceRefused when the graph is not valid."""
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        raise SourceRefused(f"{path.name}: not a valid ONNX graph: {str(e).splitlines()[0][:200]}") from e
    onnx.save(model, str(path))


def refuse_unsafe(model: Any, name: str) -> None:
    """Raises SourceRefused on custom operators, functions, an unsupported opset, or weights that are not finite."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise SourceRefused(
            f"{name}: opset {opset}, supported are {OPSETS.start} to {OPSETS.stop - 1}", hint="Export it again with opset 20."
        )
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in _nodes(model.graph) if n.domain not in _DOMAINS})
    if foreign or len(model.functions):
        raise SourceRefused(f"{name}: custom operators {foreign or [f.name for f in model.functions]} cannot run on a spoke")
    for key, array in constants(model).items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SourceRefused(
                f"{name}: weight {key!r} holds NaN or infinity", hint="The training went wrong; look at its losses."
            )


def strip(model: Any) -> None:
    """Remove what exporters leave behind:

    stack traces with paths of the build machine, and shapes that the quantizer disputes.
    """
    model.graph.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*_nodes(model.graph), *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def rename(model: Any, old: str, new: str) -> None:
    """Rename a tensor wherever it is made or used; a tensor that has the new name already gives way."""
    if any(new in (*n.input, *n.output) for n in _nodes(model.graph)):
        rename(model, new, f"{new}.inner")
    for node in _nodes(model.graph):
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = new if value.name == old else value.name


def constants(model: Any) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Initializers by name, as arrays."""
    from onnx import numpy_helper

    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for sub in (attribute.g, *attribute.graphs):
                yield from _nodes(sub)

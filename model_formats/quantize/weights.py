"""Eight-bit weights for layers that compute in float: a quarter of the bytes, without the rounding of activations.

What a layer loses by INT8 it mostly loses in its activations (a few large values set the scale for all). So where the gate gives
a layer back to float, its weights stay rounded, one scale a column, behind a DequantizeLinear that every engine has.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from model_formats.export.graph import constants, load_graph, save_graph

__all__ = ["round_weights"]


def round_weights(path: Path, names: Collection[str]) -> None:
    """Round the constant weights of these MatMul and Gemm nodes in the file, where nothing else uses them."""
    model = load_graph(path)
    held = constants(model)
    users = [name for node in model.graph.node for name in node.input]
    for place, node in reversed(list(enumerate(model.graph.node))):
        if node.name not in names or node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = held.get(node.input[1])
        if weight is not None and weight.ndim == 2 and weight.dtype == np.float32 and users.count(node.input[1]) == 1:
            _round(model.graph, place, node, weight)
    save_graph(model, path)


def _round(graph: Any, place: int, node: Any, weight: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    from onnx import helper, numpy_helper

    name, columns = node.input[1], 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    scale = np.maximum(np.abs(weight).max(axis=1 - columns), np.finfo(np.float32).tiny * 127) / np.float32(127)
    rounded = np.rint(weight / np.expand_dims(scale, 1 - columns)).clip(-127, 127).astype(np.int8)
    kept = [i for i in graph.initializer if i.name != name]
    del graph.initializer[:]
    graph.initializer.extend(
        [*kept, numpy_helper.from_array(rounded, f"{name}_rounded"), numpy_helper.from_array(scale, f"{name}_scale")]
    )
    made = helper.make_node(
        "DequantizeLinear", [f"{name}_rounded", f"{name}_scale"], [name], name=f"{node.name}_weights", axis=columns
    )
    graph.node.insert(place, made)

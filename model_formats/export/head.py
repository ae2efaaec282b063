"""The adapter point: find the last linear layer, give it a plain form, and let callers replace its weights.

Afterwards the graph ends in `output = Gemm(features, head.weight [d, k], head.bias [k])`; `features` is a graph output, and
both weights are overridable initializers (initializers that are graph inputs too), which ONNX Runtime's adapters replace per
request.
"""

from typing import Any

import numpy as np

from model_formats.core.runtime import Array
from model_formats.documents.package_spec import AdapterPoint
from model_formats.export.graph import constants, rename

__all__ = ["BIAS", "FEATURES", "WEIGHT", "expose_head"]

FEATURES, WEIGHT, BIAS = "features", "head.weight", "head.bias"


def expose_head(model: Any, output: str) -> AdapterPoint | None:
    """Rewrite the head of `output` in place.

    None (and no change) when it is not one separable linear layer over rank-2 features.
    """
    found = _find(model, output)
    if found is None:
        return None
    nodes, trunk, weight, bias = found
    if weight.ndim != 2 or bias.shape != weight.shape[1:] or not _is_computed(model, trunk):
        return None
    for node in nodes:
        model.graph.node.remove(node)
    _drop_unused(model)
    point = AdapterPoint(features=_free(model, FEATURES), weight=_free(model, WEIGHT), bias=_free(model, BIAS), output=output)
    rename(model, trunk, point.features)
    _add_head(model, weight, bias, point)
    return point


def _find(model: Any, output: str) -> tuple[list[Any], str, Array, Array] | None:
    """The nodes of the head, the tensor it reads, its weight [d, k] and bias [k]."""
    makers = {name: node for node in model.graph.node for name in node.output}
    known = constants(model)
    last = makers.get(output)
    if last is None:
        return None
    if last.op_type == "Gemm":
        return _from_gemm(last, known)
    adding = last if last.op_type == "Add" else None
    if adding is not None:
        product = next((makers[n] for n in adding.input if n in makers and makers[n].op_type == "MatMul"), None)
        bias = next((known[n] for n in adding.input if n in known), None)
    else:
        product, bias = last, None
    if product is None or product.op_type != "MatMul" or product.input[1] not in known or (adding is not None and bias is None):
        return None
    if sum(product.output[0] in n.input for n in model.graph.node) > 1:
        return None
    weight = known[product.input[1]]
    if weight.ndim != 2:
        return None
    return (
        [n for n in (product, adding) if n is not None],
        product.input[0],
        weight,
        np.zeros(weight.shape[1]) if bias is None else bias,
    )


def _from_gemm(node: Any, known: dict[str, Array]) -> tuple[list[Any], str, Array, Array] | None:
    import onnx

    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if settings.get("transA") or node.input[1] not in known or (len(node.input) > 2 and node.input[2] not in known):
        return None
    weight = known[node.input[1]].T if settings.get("transB") else known[node.input[1]]
    bias = known[node.input[2]] if len(node.input) > 2 else np.zeros(weight.shape[1])
    bias = np.broadcast_to(bias.reshape(-1), weight.shape[1]) if bias.size in (1, weight.shape[1]) else bias
    return [node], node.input[0], weight * settings.get("alpha", 1.0), bias * settings.get("beta", 1.0)


def _is_computed(model: Any, name: str) -> bool:
    """Features must come out of the trunk: a head on the raw inputs would carry rows away in its statistics."""
    return any(name in node.output for node in model.graph.node) and all(o.name != name for o in model.graph.output)


def _drop_unused(model: Any) -> None:
    used = {name for node in model.graph.node for name in node.input}
    for unused in [i for i in model.graph.initializer if i.name not in used]:
        model.graph.initializer.remove(unused)


def _free(model: Any, name: str) -> str:
    graph = model.graph
    taken = {n for node in graph.node for n in (*node.input, *node.output)} | {v.name for v in (*graph.input, *graph.initializer)}
    return name if name not in taken else f"adapter.{name}"


def _add_head(model: Any, weight: Array, bias: Array, point: AdapterPoint) -> None:
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for name, array in ((point.weight, weight), (point.bias, bias)):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    graph.node.append(helper.make_node("Gemm", [point.features, point.weight, point.bias], [point.output], name="head"))
    graph.output.append(helper.make_tensor_value_info(point.features, TensorProto.FLOAT, ["batch", weight.shape[0]]))

"""Fitting whole ONNX files by torch: operators against the engine, and real digits in INT8."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hub.train.corruptions import turn
from hub.train.datasets import digits as shares
from model_formats.arithmetic import Evaluator
from model_formats.build.build import BuildResult
from model_formats.finetune import FitTerms, FitTooLong, NotDifferentiable, Sample, fit_file
from model_formats.finetune.network import Network
from model_formats.finetune.operators import OPERATORS
from model_formats.package.adapter import read_anchors
from model_formats.runtimes.select import open_session

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6, 6)).astype(np.float32)
ROWS = RNG.standard_normal((3, 8)).astype(np.float32)
F, INT = np.float32, np.int64
Case = tuple[str, np.ndarray, dict[str, np.ndarray], dict[str, Any]]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F)


CASES: list[Case] = [
    ("Add", ROWS, {"b": floats(8)}, {}),
    ("BatchNormalization", X, {"s": floats(4), "b": floats(4), "m": floats(4), "v": floats(4) ** 2 + 1}, {"epsilon": 1e-3}),
    ("Cast", ROWS, {}, {"to": TensorProto.FLOAT}),
    ("Clip", ROWS, {"low": np.array(-0.3, F), "high": np.array(0.4, F)}, {}),
    ("Concat", ROWS, {"more": floats(2, 8)}, {"axis": 0}),
    ("Conv", X, {"w": floats(6, 2, 3, 3), "b": floats(6)}, {"pads": [1, 0, 1, 2], "strides": [2, 1], "group": 2}),
    ("Conv", X, {"w": floats(6, 4, 2, 2)}, {"dilations": [1, 2]}),
    ("Conv", ROWS.reshape(1, 3, 8), {"w": floats(5, 3, 3)}, {"pads": [1, 1]}),
    ("Div", ROWS, {"b": floats(8)}, {}),
    ("Erf", ROWS, {}, {}),
    ("Expand", ROWS, {"to": np.array([2, 3, 8], INT)}, {}),
    ("Flatten", X, {}, {"axis": 2}),
    ("Gather", ROWS, {"at": np.array([[2, 0], [1, -1]], INT)}, {"axis": 1}),
    ("Gelu", ROWS, {}, {"approximate": "tanh"}),
    ("Gelu", ROWS, {}, {}),
    ("Gemm", ROWS, {"w": floats(5, 8), "c": floats(5)}, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("GlobalAveragePool", X, {}, {}),
    ("Identity", ROWS, {}, {}),
    ("LayerNormalization", ROWS, {"s": floats(8), "b": floats(8)}, {"epsilon": 1e-4}),
    ("MatMul", X, {"w": floats(6, 3)}, {}),
    ("MaxPool", X, {}, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 0}),
    ("Mul", ROWS, {"b": floats(8)}, {}),
    ("Pow", np.abs(ROWS), {"e": np.array(1.5, F)}, {}),
    ("ReduceL2", X, {"axes": np.array([2, -1], INT)}, {"keepdims": 0}),
    ("ReduceMean", X, {"axes": np.array([1], INT)}, {}),
    ("ReduceSum", X, {}, {"keepdims": 0}),
    ("Relu", ROWS, {}, {}),
    ("Reshape", X, {"to": np.array([0, -1, 12], INT)}, {}),
    ("Sigmoid", ROWS, {}, {}),
    ("Slice", X, {n: np.array(v, INT) for n, v in {"s": [1, -3], "e": [9, -1], "a": [1, 3], "t": [2, 1]}.items()}, {}),
    ("Softmax", X, {}, {"axis": 1}),
    ("Sqrt", np.abs(ROWS), {}, {}),
    ("Squeeze", ROWS.reshape(3, 1, 8, 1), {"a": np.array([-1], INT)}, {}),
    ("Sub", ROWS, {"b": floats(8)}, {}),
    ("Tanh", ROWS, {}, {}),
    ("Transpose", X, {}, {"perm": [0, 3, 1, 2]}),
    ("Unsqueeze", ROWS, {"a": np.array([0, -1], INT)}, {}),
]  # fmt: skip
IN_GRAPHS = {"DequantizeLinear", "DynamicQuantizeLinear", "Equal", "MatMulInteger", "Not", "QuantizeLinear", "Shape", "Where"}


def graph(path: Path, nodes: list[Any], held: dict[str, np.ndarray], shape: tuple[int, ...]) -> Path:
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(a, n) for n, a in held.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    path.write_bytes(model.SerializeToString())
    return path


def both(path: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch

    return Network(path).run({"x": torch.from_numpy(x)}, "y", {}).numpy(), open_session(path).run({"x": x}, ["y"])[0]


@pytest.mark.parametrize("case", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_an_operator_gives_what_the_engine_gives(tmp_path: Path, case: Case):
    kind, x, held, attributes = case
    node = helper.make_node(kind, ["x", *held], ["y"], **attributes)
    ours, engine = both(graph(tmp_path / "m.onnx", [node], held, x.shape), x)
    assert ours.shape == engine.shape
    assert np.allclose(ours, engine, atol=2e-6, rtol=1e-5)


def test_quantized_products_and_masks_give_what_the_file_means(tmp_path: Path):
    weight = RNG.integers(-120, 120, (8, 5)).astype(np.int8)
    held = {
        "w_quantized": weight, "w_scale": np.full(5, 0.01, F), "w_zero": np.zeros(5, np.int8),
        "s": np.array(0.02, F), "z": np.array(120, np.uint8), "one": np.array([8], INT), "none": np.array(0.0, F),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w_quantized", "w_scale", "w_zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["static"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["dq", "ds", "dz"]),
        helper.make_node("MatMulInteger", ["dq", "w_quantized", "dz", "w_zero"], ["int"]),
        helper.make_node("Cast", ["int"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ds", "w_scale"], ["both"]),
        helper.make_node("Mul", ["float", "both"], ["dynamic"]),
        helper.make_node("Shape", ["x"], ["last"], start=1),
        helper.make_node("Equal", ["last", "one"], ["yes"]),
        helper.make_node("Not", ["yes"], ["no"]),
        helper.make_node("Where", ["no", "none", "dynamic"], ["chosen"]),
        helper.make_node("Concat", ["static", "chosen"], ["y"], axis=1),
    ]
    ours, _ = both(graph(tmp_path / "m.onnx", nodes, held, ROWS.shape), ROWS)
    assert np.allclose(ours, Evaluator(tmp_path / "m.onnx").run({"x": ROWS})[0], atol=1e-5), "engines saturate here on some CPUs"
    assert [w.name for w in Network(tmp_path / "m.onnx").weights] == ["w_quantized"]


def test_every_operator_of_the_table_is_compared():
    assert {kind for kind, *_ in CASES} | IN_GRAPHS == set(OPERATORS)


def test_an_operator_that_is_not_in_the_table_is_named(tmp_path: Path):
    path = graph(tmp_path / "m.onnx", [helper.make_node("Einsum", ["x"], ["y"], equation="ij->ji")], {}, ROWS.shape)
    with pytest.raises(NotDifferentiable, match="Einsum"):
        Network(path)


def test_real_digits_in_int8_are_fitted_in_their_own_steps(digits: BuildResult, int8: Path, tmp_path: Path):
    anchors = read_anchors(digits.folder / "anchors.npz")
    known = Sample(anchors.inputs, anchors.labels)
    mine, test = shares().sites["frankfurt"].take(np.arange(200)), shares().sites["clinic"]
    site = Sample({"image": 16 - mine.inputs["image"]}, mine.labels)
    point, before = digits.spec.adapter, _right(int8, 16 - test.inputs["image"], test.labels)
    assert point is not None
    found = {}
    for method in ("lora", "full"):
        out = tmp_path / f"{method}.onnx"
        fit_file(int8, out, site, known, point, method, deadline=time.monotonic() + 3600, terms=FitTerms(epochs=20))  # type: ignore[arg-type]
        found[method] = _right(out, 16 - test.inputs["image"], test.labels), _right(out, test.inputs["image"], test.labels)
        old, new = onnx.load(str(int8)), onnx.load(str(out))
        changed = [a.name for a, b in zip(old.graph.initializer, new.graph.initializer, strict=True) if a != b]
        assert changed
        assert not [name for name in changed if "scale" in name or "zero_point" in name]
        assert old.graph.node == new.graph.node
        integers = [a for a in map(numpy_helper.to_array, new.graph.initializer) if a.dtype == np.int8]
        assert max(np.abs(a.astype(int)).max() for a in integers) <= 64, "seven bits stay seven: else they saturate on some CPUs"
    assert before < 0.3
    assert min(right for right, _ in found.values()) > 0.9
    assert min(clean for _, clean in found.values()) > 0.9


def test_the_deadline_ends_a_fit_and_leaves_no_file(digits: BuildResult, int8: Path, tmp_path: Path):
    anchors = read_anchors(digits.folder / "anchors.npz")
    known = Sample(anchors.inputs, anchors.labels)
    assert digits.spec.adapter is not None
    with pytest.raises(FitTooLong):
        fit_file(int8, tmp_path / "out.onnx", known, known, digits.spec.adapter, "full", deadline=time.monotonic() - 1)
    assert not (tmp_path / "out.onnx").exists()


def _right(model: Path, images: np.ndarray, labels: np.ndarray) -> float:
    return float((open_session(model).run({"image": images}, ["logits"])[0].argmax(axis=1) == labels).mean())


def test_turned_digits_fp32_too(digits: BuildResult, tmp_path: Path):
    anchors, source = read_anchors(digits.folder / "anchors.npz"), digits.folder / "variants/onnx-fp32/model.onnx"
    mine, test = shares().sites["frankfurt"].take(np.arange(200)), shares().sites["clinic"]
    assert digits.spec.adapter is not None
    site, known = Sample({"image": turn(mine.inputs["image"], 35)}, mine.labels), Sample(anchors.inputs, anchors.labels)
    terms, until = FitTerms(epochs=8), time.monotonic() + 3600
    fit_file(source, tmp_path / "out.onnx", site, known, digits.spec.adapter, "lora", deadline=until, terms=terms)
    assert _right(tmp_path / "out.onnx", turn(test.inputs["image"], 35), test.labels) > 0.85

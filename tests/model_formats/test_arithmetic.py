"""The evaluator in float64 against ONNX Runtime, operator by operator, and that its sums are exact."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from model_formats.arithmetic import Evaluator, NotEvaluable
from model_formats.runtimes.select import open_session

RNG = np.random.default_rng(4)
F = np.float32
X = RNG.standard_normal((2, 4, 6, 7)).astype(F)
Case = tuple[str, np.ndarray, dict[str, np.ndarray], dict[str, Any]]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F)


def file(path: Path, nodes: list[Any], held: dict[str, np.ndarray], x: np.ndarray, made: int = TensorProto.FLOAT) -> Path:
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, list(x.shape))],
        [helper.make_tensor_value_info("y", made, None)],
        [numpy_helper.from_array(a, n) for n, a in held.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return path


CASES: list[Case] = [
    ("Conv", X, {"w": floats(6, 2, 3, 3), "b": floats(6)}, {"pads": [1, 0, 1, 2], "strides": [2, 1], "group": 2}),
    ("Conv", X, {"w": floats(6, 4, 2, 2)}, {"dilations": [1, 2]}),
    ("Conv", X, {"w": floats(4, 1, 3, 3)}, {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", X, {"w": floats(3, 4, 2, 4)}, {"auto_pad": "SAME_LOWER"}),
    ("Conv", X, {"w": floats(3, 4, 2, 2)}, {"auto_pad": "VALID", "strides": [3, 2]}),
    ("Conv", floats(1, 3, 8), {"w": floats(5, 3, 3)}, {"pads": [1, 1]}),
    ("Conv", floats(1, 2, 4, 5, 3), {"w": floats(5, 2, 2, 3, 2)}, {"strides": [1, 2, 1]}),
    ("MaxPool", X, {}, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    ("MaxPool", X, {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", X, {}, {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
    ("MaxPool", X, {}, {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("MaxPool", X, {}, {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    ("Gemm", floats(3, 8), {"w": floats(5, 8), "c": floats(5)}, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("LayerNormalization", floats(3, 8), {"s": floats(8), "b": floats(8)}, {"epsilon": 1e-4}),
    ("Gelu", floats(3, 8), {}, {}),
    ("Softmax", X, {}, {"axis": 1}),
    ("BatchNormalization", X, {"s": floats(4), "b": floats(4), "m": floats(4), "v": floats(4) ** 2 + 1}, {"epsilon": 1e-3}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_an_operator_gives_what_the_engine_gives(tmp_path: Path, case: Case) -> None:
    kind, x, held, attributes = case
    path = file(tmp_path / "m.onnx", [helper.make_node(kind, ["x", *held], ["y"], **attributes)], held, x)
    (ours,), (engine,) = Evaluator(path).run({"x": x}), open_session(path).run({"x": x})
    assert (ours.shape, ours.dtype) == (engine.shape, engine.dtype)
    np.testing.assert_allclose(ours, engine, atol=2e-6, rtol=1e-5)


def test_rounding_to_eight_bits_falls_as_in_the_engine_where_it_is_half_a_step(tmp_path: Path) -> None:
    x = np.arange(-4, 40, 0.25, dtype=F).reshape(1, -1)
    scale = np.array(16 / 255, F)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    path = file(tmp_path / "m.onnx", nodes, {"s": scale, "z": np.array(3, np.uint8)}, x)
    np.testing.assert_array_equal(Evaluator(path).run({"x": x})[0], open_session(path).run({"x": x})[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.booleans())
def test_integer_sums_are_exact_and_do_not_saturate(tmp_path_factory, seed: int, length: int, worst: bool) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    x = np.full((2, length), 255, np.uint8) if worst else rng.integers(0, 256, (2, length)).astype(np.uint8)
    w = np.full((length, 3), 127, np.int8) if worst else rng.integers(-128, 128, (length, 3)).astype(np.int8)
    zeros = {"w": w, "xz": np.array(rng.integers(0, 256), np.uint8), "wz": rng.integers(-5, 5, 3).astype(np.int8)}
    node = helper.make_node("MatMulInteger", ["x", "w", "xz", "wz"], ["y"])
    path = file(tmp_path_factory.mktemp("sums") / "m.onnx", [node], zeros, x, TensorProto.INT32)
    wanted = (x.astype(np.int64) - int(zeros["xz"])) @ (w.astype(np.int64) - zeros["wz"])
    np.testing.assert_array_equal(Evaluator(path).run({"x": x})[0], wanted)


def test_integer_convolutions_give_what_the_engine_gives(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (2, 3, 5, 5)).astype(np.uint8)
    held = {"w": RNG.integers(0, 256, (4, 3, 3, 3)).astype(np.uint8), "xz": np.array(7, np.uint8), "wz": np.array(9, np.uint8)}
    path = file(tmp_path / "m.onnx", [helper.make_node("ConvInteger", ["x", *held], ["y"])], held, x, TensorProto.INT32)
    np.testing.assert_array_equal(Evaluator(path).run({"x": x})[0], open_session(path).run({"x": x})[0])


@pytest.mark.parametrize("rows", [floats(3, 8), np.zeros((2, 4), F), np.full((1, 3), -2.5, F)])
def test_dynamic_scales_are_the_engines(tmp_path: Path, rows: np.ndarray) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    path = file(tmp_path / "m.onnx", nodes, {}, rows)
    np.testing.assert_array_equal(Evaluator(path).run({"x": rows})[0], open_session(path).run({"x": rows})[0])


def test_graphs_within_a_graph_are_float64_too(tmp_path: Path) -> None:
    def branch(name: str, value: float) -> Any:
        made = helper.make_tensor_value_info(f"{name}y", TensorProto.FLOAT, None)
        constant = numpy_helper.from_array(np.array([value], F), f"{name}c")
        return helper.make_graph([helper.make_node("Add", ["x", f"{name}c"], [f"{name}y"])], name, [], [made], [constant])

    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch("t", 0.1), else_branch=branch("e", 5))]
    x = floats(2, 3)
    path = file(tmp_path / "m.onnx", nodes, {"yes": np.array(True)}, x)
    assert Evaluator(path).tensors({"x": x})["y"].dtype == np.float64
    np.testing.assert_allclose(Evaluator(path).run({"x": x})[0], x + F(0.1), rtol=1e-6)


def test_what_cannot_be_evaluated_is_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("FusedGemm", ["x", "w"], ["y"], domain="com.microsoft")
    with pytest.raises(NotEvaluable, match="FusedGemm"):
        Evaluator(file(tmp_path / "m.onnx", [node], {"w": floats(8, 2)}, floats(3, 8))).run({"x": floats(3, 8)})
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(NotEvaluable, match=r"m\.onnx"):
        Evaluator(file(tmp_path / "m.onnx", [node], {"w": floats(7, 2)}, floats(3, 8))).run({"x": floats(3, 8)})

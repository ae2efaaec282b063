"""The gate's search on a network whose one bad layer is known: weights of wildly different size in one channel."""

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_formats.export.graph import load_graph, save_graph
from model_formats.export.head import expose_head
from model_formats.quantize.accuracy_gate import Quantized, _fewest, quantize_within
from model_formats.quantize.dynamic import DynamicInt8
from model_formats.quantize.layers import QuantizeFailed, layers, preparation, prepare, suggest
from model_formats.quantize.static import StaticQdq
from model_formats.runtimes.benchmark import is_slower
from model_formats.runtimes.select import open_session

RNG = np.random.default_rng(5)
ROWS = {"x": RNG.normal(size=(400, 8)).astype(np.float32)}


def _network(path: Path, *, spoiled: bool) -> Path:
    """Two products and a head; when spoiled, the second sees activations of which one column is a thousand times the others."""
    first = RNG.normal(size=(8, 16)).astype(np.float32)
    second = RNG.normal(size=(16, 16)).astype(np.float32)
    if spoiled:
        first[:, 0] *= 1000
        second[0] = 0
    head = RNG.normal(size=(16, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["scaled"], name="scale"),
        helper.make_node("MatMul", ["scaled", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["ar"], name="relu1"),
        helper.make_node("MatMul", ["ar", "w2"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["br"], name="relu2"),
        helper.make_node("MatMul", ["br", "w3"], ["y"], name="head"),
    ]
    weights = {"half": np.array(0.5, np.float32), "w1": first, "w2": second, "w3": head}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _prepared(folder: Path, *, spoiled: bool) -> Path:
    prepare(_network(folder / "raw.onnx", spoiled=spoiled), folder / "prepared.onnx")
    return folder / "prepared.onnx"


def _agreement(path: Path, truth: np.ndarray) -> float:
    return float((open_session(path).run(ROWS, ["y"])[0].argmax(axis=1) == truth).mean())


def test_layers_are_the_products_without_the_head_and_the_preparation(tmp_path: Path) -> None:
    prepared = _prepared(tmp_path, spoiled=False)
    assert layers(prepared) == ["first", "second"]
    assert preparation(prepared) == ["scale"]


def test_the_head_and_the_scaling_stay_in_float(tmp_path: Path) -> None:
    prepared = _prepared(tmp_path, spoiled=False)
    StaticQdq(ROWS).quantize(prepared, tmp_path / "q.onnx")
    kinds = {i.name: i.data_type for i in load_graph(tmp_path / "q.onnx").graph.initializer}
    assert kinds["w3"] == TensorProto.FLOAT
    assert "w1" not in kinds


def test_the_layer_that_does_the_damage_goes_back_to_float(tmp_path: Path) -> None:
    prepared = _prepared(tmp_path, spoiled=True)
    truth = open_session(prepared).run(ROWS, ["y"])[0].argmax(axis=1)
    plain = tmp_path / "plain.onnx"
    StaticQdq(ROWS).quantize(prepared, plain)
    made = quantize_within(StaticQdq(ROWS), prepared, tmp_path / "int8.onnx", ROWS, lambda p: _agreement(p, truth), 1.0, 0.05)
    assert _agreement(plain, truth) < 0.8
    assert made.kept_float == ("second",)
    assert made.score >= 0.95
    assert _agreement(made.path, truth) == made.score


def test_a_good_network_keeps_all_its_layers_in_int8(tmp_path: Path) -> None:
    prepared = _prepared(tmp_path, spoiled=False)
    truth = open_session(prepared).run(ROWS, ["y"])[0].argmax(axis=1)
    made = quantize_within(StaticQdq(ROWS), prepared, tmp_path / "int8.onnx", ROWS, lambda p: _agreement(p, truth), 1.0, 0.05)
    assert made.kept_float == ()


def test_dynamic_keeps_the_head_in_float_too(tmp_path: Path) -> None:
    prepared = _prepared(tmp_path, spoiled=False)
    DynamicInt8().quantize(prepared, tmp_path / "q.onnx")
    graph = load_graph(tmp_path / "q.onnx").graph
    assert [n.op_type for n in graph.node].count("MatMulInteger") == 2
    assert any(n.name == "head" and n.op_type == "MatMul" for n in graph.node)


def test_dynamic_keeps_an_exposed_head_as_it_is_so_that_sites_can_still_replace_it(tmp_path: Path) -> None:
    model = load_graph(_prepared(tmp_path, spoiled=False))
    point = expose_head(model, "y")
    assert point is not None
    exposed = tmp_path / "exposed.onnx"
    save_graph(model, exposed)
    DynamicInt8().quantize(exposed, tmp_path / "q.onnx")
    made = load_graph(tmp_path / "q.onnx").graph
    assert [n.op_type for n in made.node].count("MatMulInteger") == 2
    held = {i.name: i.data_type for i in made.initializer}
    assert {held[point.weight], held[point.bias]} == {TensorProto.FLOAT}
    assert {point.weight, point.bias} <= {i.name for i in made.input}, "overridable: an initializer and an input"


def test_a_gemm_can_be_kept_in_float_and_can_be_the_only_one_that_is_not(tmp_path: Path) -> None:
    model = load_graph(_prepared(tmp_path, spoiled=False))
    first = next(n for n in model.graph.node if n.name == "first")
    first.op_type = "Gemm"
    save_graph(model, tmp_path / "gemm.onnx")
    for names, whole in (({"keep_float": ["first"]}, 1), ({"only": ["first"]}, 1), ({}, 2)):
        DynamicInt8().quantize(tmp_path / "gemm.onnx", tmp_path / "q.onnx", **names)
        made = load_graph(tmp_path / "q.onnx").graph
        assert [n.op_type for n in made.node].count("MatMulInteger") == whole, names


def test_calibration_rows_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    prepared = _prepared(tmp_path, spoiled=False)
    with pytest.raises(QuantizeFailed, match="static quantization failed"):
        StaticQdq({"x": np.zeros((40, 7), np.float32)}).quantize(prepared, tmp_path / "q.onnx")


def test_transformers_are_quantized_dynamically_and_the_rest_statically(tmp_path: Path) -> None:
    assert suggest(load_graph(_network(tmp_path / "n.onnx", spoiled=False))) == "static"
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"])
    graph = helper.make_graph([node], "g", [], [], [])
    assert suggest(helper.make_model(graph)) == "dynamic"


def test_nothing_is_left_in_the_working_folder_when_shape_inference_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [f"{n}.rows", 8]) for n in ("x", "z")]
    nodes = [helper.make_node("Add", ["x", "z"], ["a"], name="add"), helper.make_node("MatMul", ["a", "w"], ["y"], name="head")]
    weight = numpy_helper.from_array(np.ones((8, 300), np.float32), "w")
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 300])
    graph = helper.make_graph(nodes, "g", values, [out], [weight])  # are `x.rows` and `z.rows` the same? It stops there
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "raw.onnx")
    prepare(Path("raw.onnx"), Path("prepared.onnx"))
    assert {f.name for f in tmp_path.iterdir()} == {"raw.onnx", "prepared.onnx"}


def test_the_search_gives_back_the_fewest_layers_that_are_enough(tmp_path: Path) -> None:
    tried: list[int] = []

    def search(enough: int) -> int:
        tried.clear()

        def give_back(count: int) -> Quantized:
            tried.append(count)
            return Quantized(tmp_path / "trial", 1.0 if count >= enough else 0.5 + count / 100, tuple(map(str, range(count))))

        return len(_fewest(give_back, 24, Quantized(tmp_path, 0.5, ()), 0.99).kept_float)

    for enough in (1, 2, 3, 6, 11, 16):
        assert search(enough) == enough
        assert len(tried) <= 8
    assert search(25) == 16  # not enough: the best that was tried


class Busy:
    """A session that takes so many milliseconds, and no more than the clock's grain beyond."""

    def __init__(self, one: float, many: float) -> None:
        self._ms = {1: one, 32: many}

    def run(self, inputs: dict[str, np.ndarray]) -> None:
        end = time.perf_counter() + self._ms[len(inputs["x"])] / 1e3
        while time.perf_counter() < end:
            pass


@pytest.mark.parametrize(
    ("one", "many", "slower"), [(1.0, 1.0, True), (0.98, 0.98, True), (2.0, 0.5, False), (0.5, 2.0, False), (1.5, 1.5, True)]
)
def test_int8_is_worth_offering_only_when_it_is_clearly_faster_somewhere(one: float, many: float, slower: bool) -> None:
    assert is_slower(Busy(one, many), Busy(1.0, 1.0), ROWS) is slower  # type: ignore[arg-type]


def test_a_transformers_layer_in_float_keeps_eight_bit_weights(tmp_path: Path) -> None:
    prepared = _prepared(tmp_path, spoiled=True)
    truth = open_session(prepared).run(ROWS, ["y"])[0]
    DynamicInt8().quantize(prepared, tmp_path / "int8.onnx")
    DynamicInt8().quantize(prepared, tmp_path / "mixed.onnx", keep_float=["second"])
    graph = load_graph(tmp_path / "mixed.onnx").graph
    assert [n.op_type for n in graph.node if n.name == "second"] == ["MatMul"]
    held = {i.name: i.data_type for i in graph.initializer}
    assert held["w2_rounded"] == TensorProto.INT8
    assert "w2" not in held
    for engine in ("onnxruntime", "openvino"):
        got = open_session(tmp_path / "mixed.onnx", engine=engine).run(ROWS, ["y"])[0]
        whole = open_session(tmp_path / "int8.onnx").run(ROWS, ["y"])[0]
        assert np.square(got - truth).mean() < 0.2 * np.square(whole - truth).mean()

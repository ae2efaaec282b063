from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from model_formats.build.build import BuildResult
from model_formats.core.array_file import ArraysRefused, write_arrays
from model_formats.core.runtime import LoadFailed, candidates
from model_formats.package.golden import Golden, GoldenMismatch, check_golden, read_golden, write_golden
from model_formats.runtimes.select import choose_engine, open_exact, open_session, try_engines


@pytest.fixture(scope="module")
def golden(digits: BuildResult) -> Golden:
    return read_golden(digits.folder / "golden.npz")


def test_round_trip_keeps_every_variant(golden: Golden, tmp_path: Path) -> None:
    write_golden(tmp_path / "g.npz", golden)
    back = read_golden(tmp_path / "g.npz")
    assert set(back.variants) == set(golden.variants) == {"onnx-int8", "onnx-fp32"}
    for name, one in golden.variants.items():
        assert (back.of(name).atol, back.of(name).rtol) == (one.atol, one.rtol)
        for key, array in one.outputs.items():
            np.testing.assert_array_equal(back.of(name).outputs[key], array)


def test_a_single_expectation_round_trips_too(tmp_path: Path) -> None:
    write_golden(tmp_path / "g.npz", Golden({"x": np.ones(2)}, {"y": np.zeros(2)}, 0.1, 0.2))
    back = read_golden(tmp_path / "g.npz")
    assert (back.atol, back.rtol, dict(back.variants)) == (0.1, 0.2, {})


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8"])
def test_both_engines_give_the_golden_outputs(digits: BuildResult, golden: Golden, variant: str, engine) -> None:  # type: ignore[no-untyped-def]
    session = open_session(digits.folder / f"variants/{variant}/model.onnx", engine=engine)
    assert check_golden(session, golden, variant).ok
    assert check_golden(session, golden).ok


def test_another_models_file_is_caught(digits: BuildResult, golden: Golden, tmp_path: Path) -> None:
    from examples.demo.damage import sabotage

    bad = sabotage(digits.folder, tmp_path / "bad", version=2, overridden_by="a test")
    result = check_golden(open_session(bad / "variants/onnx-int8/model.onnx"), golden, "onnx-int8")
    assert not result.ok
    assert result.worst > 1
    assert "logits" in result.detail


def test_a_missing_output_is_infinitely_wrong(int8: Path, golden: Golden) -> None:
    one = replace(golden.of("onnx-int8"), outputs={"absent": np.zeros((16, 10), np.float32)})
    assert check_golden(open_session(int8), one).worst == np.inf


def test_the_engine_is_chosen_among_those_that_agree(int8: Path, golden: Golden) -> None:
    tried = candidates(["onnxruntime", "openvino"])
    trials = try_engines(int8, tried, golden, "onnx-int8")
    assert {t.engine for t in trials if t.usable and t.latency_ms} == {"onnxruntime", "openvino"}
    assert choose_engine(int8, tried, golden, "onnx-int8") in tried


def test_no_engine_that_agrees_is_a_refusal_that_says_why(int8: Path, golden: Golden) -> None:
    wrong = replace(golden.of("onnx-int8"), outputs={"logits": golden.outputs["logits"][:, ::-1]})
    with pytest.raises(GoldenMismatch, match=r"onnxruntime: output 'logits'.*onnxruntime \(exact\): output 'logits'"):
        choose_engine(int8, candidates(["onnxruntime"]), wrong)


@pytest.mark.parametrize(
    "arrays",
    [
        {"input:x": np.ones(2)},
        {"input:x": np.ones(2), "tolerance:": np.array([1.0, 0.0])},
        {"input:x": np.ones(2), "output::y": np.ones(2), "tolerance:": np.array([np.nan, 0.0])},
        {"input:x": np.ones(2), "output::y": np.ones(2), "tolerance:": np.array([-1.0, 0.0])},
        {"output::y": np.ones(2), "tolerance:": np.array([1.0, 0.0])},
    ],
)
def test_files_that_prove_nothing_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_arrays(tmp_path / "g.npz", arrays)
    with pytest.raises(ArraysRefused):
        read_golden(tmp_path / "g.npz")


def test_a_file_that_cannot_be_opened_exactly_is_opened_all_the_same(tmp_path: Path) -> None:
    held = {
        "w": np.full((8, 2), 120, np.int8), "s": np.full(2, 0.1, np.float32), "z": np.zeros(2, np.int8),
        "xs": np.array(0.1, np.float32), "xz": np.array(9, np.uint8),
    }  # fmt: skip
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["xd", "d"], ["m"]),
        helper.make_node("Add", ["f", "m"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(a, n) for n, a in held.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(tmp_path / "m.onnx"))
    with pytest.raises(LoadFailed):
        open_session(tmp_path / "m.onnx", mode="exact")
    assert open_exact(tmp_path / "m.onnx").run({"x": np.ones((1, 8), np.float32)})[0].shape == (1, 2)

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hub.train.runner import Trained
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.export.exported_program import ExportedProgram
from model_formats.export.graph import load_graph, save_graph
from model_formats.export.head import expose_head
from model_formats.export.onnx_file import OnnxFile
from model_formats.export.source import ExportFailed, SourceRefused
from model_formats.export.torch_module import TorchModule, load_factory
from model_formats.runtimes.select import open_session

CONTRACT = FeatureContract(
    task="classification",
    inputs=(TensorContract(name="x", datatype="FP32", shape=(-1, 4)),),
    outputs=(TensorContract(name="y", datatype="FP32", shape=(-1, 3)),),
    classes=("a", "b", "c"),
)
ROWS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def _model(nodes: list, weights: dict[str, np.ndarray], opset: int = 17, domain: str | None = None) -> onnx.ModelProto:  # type: ignore[type-arg]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input_0", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("output_0", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _two_layers(head: list) -> list:  # type: ignore[type-arg]
    return [helper.make_node("MatMul", ["input_0", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["r"]), *head]


def _plain() -> onnx.ModelProto:
    nodes = _two_layers([helper.make_node("Gemm", ["r", "w2", "b"], ["output_0"], transB=1, alpha=2.0, beta=0.5)])
    return _model(nodes, {"w1": _weights(4, 5), "w2": _weights(3, 5), "b": _weights(3)})


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    onnx.save(_plain(), str(tmp_path / "plain.onnx"))
    return tmp_path / "plain.onnx"


def test_a_file_from_elsewhere_gets_the_contracts_names_and_any_batch(plain: Path, tmp_path: Path) -> None:
    OnnxFile(plain).export(tmp_path / "out.onnx", CONTRACT)
    session = open_session(tmp_path / "out.onnx")
    assert [i.name for i in session.inputs] == ["x"]
    whole = session.run({"x": ROWS}, ["y"])[0]
    one = open_session(plain).run({"input_0": ROWS[:1]})[0]
    np.testing.assert_allclose(whole[:1], one, rtol=1e-5)


HEADS = {
    "gemm": [helper.make_node("Gemm", ["r", "w2", "b"], ["output_0"], transB=1, alpha=2.0, beta=0.5)],
    "gemm without bias": [helper.make_node("Gemm", ["r", "w3"], ["output_0"])],
    "matmul": [helper.make_node("MatMul", ["r", "w3"], ["output_0"])],
    "matmul and add": [helper.make_node("MatMul", ["r", "w3"], ["m"]), helper.make_node("Add", ["m", "b"], ["output_0"])],
    "add and matmul": [helper.make_node("MatMul", ["r", "w3"], ["m"]), helper.make_node("Add", ["b", "m"], ["output_0"])],
}


@pytest.mark.parametrize("head", HEADS)
def test_every_form_of_linear_head_is_found_and_keeps_its_answers(tmp_path: Path, head: str) -> None:
    model = _model(_two_layers(HEADS[head]), {"w1": _weights(4, 5), "w2": _weights(3, 5), "w3": _weights(5, 3), "b": _weights(3)})
    onnx.save(model, str(tmp_path / "in.onnx"))
    OnnxFile(tmp_path / "in.onnx").export(tmp_path / "raw.onnx", CONTRACT)
    before = open_session(tmp_path / "raw.onnx").run({"x": ROWS}, ["y"])[0]
    exposed = load_graph(tmp_path / "raw.onnx")
    point = expose_head(exposed, "y")
    assert point is not None
    save_graph(exposed, tmp_path / "out.onnx")
    after, features = open_session(tmp_path / "out.onnx").run({"x": ROWS}, ["y", "features"])
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert features.shape == (9, 5)


NO_HEADS = {
    "softmax at the end": _two_layers(
        [helper.make_node("MatMul", ["r", "w3"], ["m"]), helper.make_node("Softmax", ["m"], ["output_0"])]
    ),
    "one linear layer on the raw input": [helper.make_node("MatMul", ["input_0", "w4"], ["output_0"])],
    "product of two computed tensors": _two_layers(
        [helper.make_node("MatMul", ["r", "w3"], ["m"]), helper.make_node("Mul", ["m", "m"], ["output_0"])]
    ),
}


@pytest.mark.parametrize("name", NO_HEADS)
def test_a_model_without_a_separable_head_is_left_as_it_is(name: str) -> None:
    model = _model(NO_HEADS[name], {"w1": _weights(4, 5), "w3": _weights(5, 3), "w4": _weights(4, 3)})
    before = model.SerializeToString()
    assert expose_head(model, "output_0") is None
    assert model.SerializeToString() == before


def _external(plain: Path, location: str, *, length: int | None = None) -> Path:
    model = onnx.load(str(plain))
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(length or len(data))}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    target = plain.parent / "ext.onnx"
    target.write_bytes(model.SerializeToString())
    if not Path(location).is_absolute() and ".." not in location:
        (plain.parent / location).write_bytes(data)
    return target


def test_external_data_beside_the_file_is_read_into_one_file(plain: Path, tmp_path: Path) -> None:
    OnnxFile(_external(plain, "weights.bin")).export(tmp_path / "out.onnx", CONTRACT)
    OnnxFile(plain).export(tmp_path / "whole.onnx", CONTRACT)
    found = [open_session(tmp_path / n).run({"x": ROWS}, ["y"])[0] for n in ("out.onnx", "whole.onnx")]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/../../weights.bin", ""])
def test_external_data_outside_the_folder_is_refused(plain: Path, tmp_path: Path, location: str) -> None:
    with pytest.raises(SourceRefused, match="outside the model's own folder"):
        OnnxFile(_external(plain, location) if location else _external_unnamed(plain)).export(tmp_path / "out.onnx", CONTRACT)
    assert not (tmp_path / "out.onnx").exists()


def _external_unnamed(plain: Path) -> Path:
    target = _external(plain, "weights.bin")
    model = onnx.load(str(target), load_external_data=False)
    del model.graph.initializer[0].external_data[0]
    target.write_bytes(model.SerializeToString())
    return target


def test_external_data_that_is_a_link_or_too_short_is_refused(plain: Path, tmp_path: Path) -> None:
    file = _external(plain, "weights.bin")
    (tmp_path / "elsewhere").write_bytes((tmp_path / "weights.bin").read_bytes())
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "weights.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceRefused, match="outside"):
        OnnxFile(file).export(tmp_path / "out.onnx", CONTRACT)
    with pytest.raises(SourceRefused, match="beyond the end"):
        OnnxFile(_external(plain, "short.bin", length=10_000)).export(tmp_path / "out.onnx", CONTRACT)


def _custom_operator() -> onnx.ModelProto:
    nodes = _two_layers([helper.make_node("Evil", ["r", "w3"], ["output_0"], domain="my.ops")])
    return _model(nodes, {"w1": _weights(4, 5), "w3": _weights(5, 3)}, domain="my.ops")


def _old_opset() -> onnx.ModelProto:
    return _model(
        _two_layers([helper.make_node("MatMul", ["r", "w3"], ["output_0"])]),
        {"w1": _weights(4, 5), "w3": _weights(5, 3)},
        opset=9,
    )


def _nan_weights() -> onnx.ModelProto:
    weights = {"w1": _weights(4, 5), "w3": _weights(5, 3) * np.float32("nan")}
    return _model(_two_layers([helper.make_node("MatMul", ["r", "w3"], ["output_0"])]), weights)


@pytest.mark.parametrize(
    ("make", "told"), [(_custom_operator, r"my\.ops\.Evil"), (_old_opset, "opset 9"), (_nan_weights, "'w3' holds NaN")]
)
def test_graphs_that_no_spoke_should_run_are_refused(tmp_path: Path, make, told: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "bad.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(SourceRefused, match=told):
        OnnxFile(tmp_path / "bad.onnx").export(tmp_path / "out.onnx", CONTRACT)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "content", [pickle.dumps({"a": 1}), b"PK\x03\x04 and so on", b"\xff\xff\xff\xff garbage", _plain().SerializeToString()[:60]]
)
def test_files_that_are_not_onnx_are_refused_unopened(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(SourceRefused, match=r"bad\.onnx"):
        OnnxFile(tmp_path / "bad.onnx").export(tmp_path / "out.onnx", CONTRACT)


def test_a_graph_with_other_inputs_than_the_contract_says_so(plain: Path, tmp_path: Path) -> None:
    wide = CONTRACT.replace(inputs=(*CONTRACT.inputs, TensorContract(name="z", datatype="FP32", shape=(-1, 1))))
    with pytest.raises(ExportFailed, match="input_0"):
        OnnxFile(plain).export(tmp_path / "out.onnx", wide)


def test_an_exported_program_and_its_module_give_the_same_model(trained: Trained, tmp_path: Path) -> None:
    import torch

    assert isinstance(trained.source, TorchModule)
    images, contract = trained.data.held_out.inputs, trained.options.contract
    program = torch.export.export(
        trained.source.module, (torch.from_numpy(images["image"][:2]),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, tmp_path / "digits.pt2")
    source = ExportedProgram(tmp_path / "digits.pt2")
    source.export(tmp_path / "out.onnx", contract)
    got = open_session(tmp_path / "out.onnx").run(images, ["logits"])[0]
    for reference in (source, trained.source):
        found = reference.reference(images, contract)
        assert found is not None
        np.testing.assert_allclose(got, found["logits"], atol=1e-3)


def test_a_pickled_checkpoint_is_not_a_program(tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt2")
    with pytest.raises(SourceRefused, match=r"not a torch\.export program"):
        ExportedProgram(tmp_path / "model.pt2").export(tmp_path / "out.onnx", CONTRACT)


def test_a_module_that_cannot_take_the_rows_is_an_export_error(trained: Trained, tmp_path: Path) -> None:
    import torch

    with pytest.raises(ExportFailed, match="Linear"):
        TorchModule(torch.nn.Linear(3, 2), {"image": trained.data.held_out.inputs["image"][:2]}).export(
            tmp_path / "out.onnx", trained.options.contract
        )


@pytest.mark.parametrize("text", ["nothing", "os:getcwd2", "hub.train.digits:CONTRACT"])
def test_factories_are_named_as_module_and_attribute(text: str) -> None:
    with pytest.raises(SourceRefused, match=text.split(":")[0]):
        load_factory(text)

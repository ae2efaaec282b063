"""Signed 8-bit weights whose 16-bit sums saturate on AVX2: the golden vectors catch it, and the exact mode is right."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_formats.build.dataset import Rows, write_rows
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.documents.package_spec import CONTRACT, GOLDEN, SPEC, PackageSpec, Requirements, Residency, VariantSpec
from model_formats.package.golden import Golden, write_golden
from tests.cpus.machines import HOST, X86, Machine
from tests.cpus.probe import probe
from tests.cpus.rig import Rig
from tests.samples.model_folder import MEASURED

INPUTS, CLASSES = 64, 4
MAIN = "variants/onnx-int8/model.onnx"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One INT8 product of bright pixels with weights near 127: two products are up to 64 770, and 16 bits end at 32 767."""
    folder, random = tmp_path_factory.mktemp("overflow"), np.random.default_rng(1)
    pixels = random.integers(200, 256, (40, INPUTS)).astype(np.uint8)
    weights = random.integers(100, 128, (INPUTS, CLASSES)).astype(np.int8)
    exact = (pixels.astype(np.int64) @ weights.astype(np.int64)) / 128 / 255
    (folder / MAIN).parent.mkdir(parents=True)
    onnx.save(_model(weights), folder / MAIN)
    inputs = {"x": (pixels / 255).astype(np.float32)}
    write_golden(folder / GOLDEN, Golden(inputs, {"logits": exact.astype(np.float32)}, 1e-2, 1e-2, {}))
    write_rows(folder / "rows.npz", Rows(inputs, exact.argmax(1)))
    (folder / SPEC).write_bytes(_spec().canonical())
    (folder / CONTRACT).write_bytes(_contract().canonical())
    return folder


@pytest.mark.xdist_group("cpus")
@pytest.mark.parametrize("machine", [HOST, *X86], ids=lambda m: m.name)
def test_saturated_sums_do_not_pass_for_the_models_answers(machine: Machine, overflowing: Path) -> None:
    rig = Rig()
    if why := rig.lacks(machine):
        pytest.skip(why)
    fast, exact = sorted(probe(rig, machine, overflowing, overflowing / "rows.npz"), key=lambda way: way.mode == "exact")
    assert exact.agrees, exact
    assert exact.score == 1, "the largest logit is the right one"
    if machine.name == "sse42":
        assert fast.agrees, "no 16-bit sums there"
    if machine.name == "avx2":
        assert fast.worst is not None
        assert fast.worst > 10


def _model(weights: np.ndarray) -> onnx.ModelProto:
    fixed = {
        "pixel": np.float32(1 / 255),
        "zero": np.uint8(0),
        "w": weights,
        "w.scale": np.float32(1 / 128),
        "w.zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "pixel", "zero"], ["x.q"]),
        helper.make_node("DequantizeLinear", ["x.q", "pixel", "zero"], ["x.f"]),
        helper.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["w.f"]),
        helper.make_node("MatMul", ["x.f", "w.f"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "overflow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in fixed.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _spec() -> PackageSpec:
    only = VariantSpec(
        name="onnx-int8",
        format="onnx",
        precision="int8",
        main=MAIN,
        files=(MAIN,),
        requires=Requirements(engines=("onnxruntime",)),
    )
    return PackageSpec(
        model="overflow",
        version=1,
        title="Sums that 16 bits cannot hold",
        licence="Apache-2.0",
        created=MEASURED,
        variants=(only,),
        residency=Residency(zones=("eu",), regimes=("gdpr",)),
    )


def _contract() -> FeatureContract:
    return FeatureContract(
        task="classification",
        inputs=(TensorContract(name="x", datatype="FP32", shape=(-1, INPUTS)),),
        outputs=(TensorContract(name="logits", datatype="FP32", shape=(-1, CLASSES)),),
        classes=tuple("abcd"),
    )

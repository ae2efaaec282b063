"""A real, small, adaptable package for the digits: a fixed random trunk and a fitted, overridable head, as ONNX."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hub.train.datasets import digits
from model_formats.documents.package_spec import (
    ANCHORS,
    CARD,
    CONTRACT,
    EVIDENCE,
    GOLDEN,
    PROFILE,
    SPEC,
    AdapterPoint,
    PackageSpec,
    Residency,
    VariantSpec,
)
from model_formats.package import ImageLayout, pack
from model_formats.package.adapter import Anchors, Head, write_anchors
from model_formats.package.golden import Golden, write_golden
from model_formats.runtimes.select import open_session
from model_formats.statistics.reference_profile import build_profile
from spoke_agent.adapters.head_fit import FitRows, fit_head
from tests.samples.model_folder import MEASURED, _contract, _evidence

POINT = AdapterPoint(features="features", weight="head.weight", bias="head.bias", output="logits")
WIDTH = 96


def trunk(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((64, WIDTH)).astype(np.float32) / 48, rng.standard_normal(WIDTH).astype(np.float32) / 3


def features(images: np.ndarray, seed: int = 1) -> np.ndarray:
    weight, bias = trunk(seed)
    return np.maximum(images.reshape(len(images), -1) @ weight + bias, 0)


@lru_cache(maxsize=4)
def hub_head(seed: int = 1) -> Head:
    shares = digits()
    rows = FitRows(features(shares.train.inputs["image"], seed), shares.train.labels)
    blank = Head(np.zeros((WIDTH, 10), np.float32), np.zeros(10, np.float32))
    return fit_head(rows, None, blank, 1e-4)


def write_adaptable(
    folder: Path, *, version: int = 1, seed: int = 1, learning: str = "adapter", anchor_inputs: bool = True
) -> Path:
    """A model folder with one variant, `onnx-fp32`."""
    shares, head, main = digits(), hub_head(seed), "variants/onnx-fp32/model.onnx"
    (folder / main).parent.mkdir(parents=True)
    (folder / main).write_bytes(_onnx(seed, head).SerializeToString())
    spec = PackageSpec(
        model="digits",
        version=version,
        title="Digits",
        licence="Apache-2.0",
        created=MEASURED,
        variants=(VariantSpec(name="onnx-fp32", format="onnx", precision="fp32", main=main, files=(main,)),),
        adapter=POINT,
        residency=Residency(zones=("me", "eu"), regimes=("gdpr", "ae-pdpl"), learning=learning),  # type: ignore[arg-type]
    )
    session = open_session(folder / main)
    held = shares.held_out.inputs["image"]
    (logits,) = session.run({"image": held}, ["logits"])
    (folder / SPEC).write_bytes(spec.canonical())
    (folder / CONTRACT).write_bytes(_contract().canonical())
    (folder / EVIDENCE).write_bytes(_evidence(["onnx-fp32"]).canonical())
    (folder / PROFILE).write_bytes(build_profile(_contract(), {"image": held}, {"logits": logits}).canonical())
    (folder / CARD).write_text("# digits\n")
    write_golden(folder / GOLDEN, Golden({"image": held[:4]}, {"logits": logits[:4]}, 1e-4, 1e-4))
    inputs = {"image": held[:100]} if anchor_inputs else {}
    known = shares.held_out.labels[:100]
    write_anchors(folder / ANCHORS, Anchors(features(held[:100], seed).astype(np.float16), known, head, inputs))
    return folder


def packed_adaptable(folder: Path, **options: object) -> tuple[ImageLayout, str]:
    """The same, packed."""
    index = pack(write_adaptable(folder / "source", **options), folder / "layout")  # type: ignore[arg-type]
    return ImageLayout(folder / "layout"), index


def _onnx(seed: int, head: Head) -> onnx.ModelProto:
    weight, bias = trunk(seed)
    fixed = {"a": weight, "c": bias, "shape": np.array([-1, 64])}
    open_ = {POINT.weight: head.weight, POINT.bias: head.bias}
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "a", "c"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["features"]),
        helper.make_node("Gemm", ["features", POINT.weight, POINT.bias], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(a.shape)) for n, a in open_.items()]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w]) for n, w in (("logits", 10), ("features", WIDTH))]
    graph = helper.make_graph(
        nodes, "digits", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in {**fixed, **open_}.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

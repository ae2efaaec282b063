"""A site's home with real, tiny models in its store, made with the onnx library; and a real server on it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_formats.documents.evidence import Evidence, GateResult, VariantEvidence
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.documents.package_spec import (
    CARD,
    CONTRACT,
    EVIDENCE,
    GOLDEN,
    SPEC,
    AdapterPoint,
    PackageSpec,
    Residency,
    VariantSpec,
)
from model_formats.package import ImageLayout, pack
from model_formats.package.golden import Golden, write_golden
from model_formats.runtimes.select import open_session
from spoke_agent.site.slots import AdapterSlot, ModelSlots, Slot, Slots, read_slots, write_slots
from tests.samples.model_folder import MEASURED

VARIANT = "onnx-fp32"
MAIN = f"variants/{VARIANT}/model.onnx"
OFF_VARIANT = "onnx-int8"
OFF_MAIN = f"variants/{OFF_VARIANT}/model.onnx"
D, K = 32, 10


def image(rows: int = 1, seed: int = 0) -> np.ndarray:
    """Pixels like those of the digits."""
    return np.random.default_rng(seed).integers(0, 17, (rows, 1, 8, 8)).astype(np.float32)


def cnn(seed: int = 0, *, layers: int = 1, channels: int = 8) -> onnx.ModelProto:
    """`image` -> `logits` and `features`, with an overridable head. `layers` and `channels` make it slower."""
    rng = np.random.default_rng(seed)

    def constant(name: str, *shape: int, scale: float = 0.3) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name)

    scale = numpy_helper.from_array(np.float32(1 / 16), "scale")
    weights = [scale, constant("c0", channels, 1, 3, 3)]
    nodes = [helper.make_node("Mul", ["image", "scale"], ["x"])]
    nodes += [helper.make_node("Conv", ["x", "c0"], ["h0"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["h0"], ["r0"])]
    for i in range(1, layers):
        weights.append(constant(f"c{i}", channels, channels, 3, 3, scale=0.05))
        nodes += [
            helper.make_node("Conv", [f"r{i - 1}", f"c{i}"], [f"h{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
        ]
    last = f"r{layers - 1}"
    weights += [constant("w1", channels * 16, D), constant("head.weight", D, K), constant("head.bias", K)]
    nodes += [
        helper.make_node("MaxPool", [last], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["m"]),
        helper.make_node("Relu", ["m"], ["features"]),
        helper.make_node("MatMul", ["features", "head.weight"], ["y"]),
        helper.make_node("Add", ["y", "head.bias"], ["logits"]),
    ]
    inputs = [_value("image", TensorProto.FLOAT, ["n", 1, 8, 8])]
    inputs += [_value("head.weight", TensorProto.FLOAT, [D, K]), _value("head.bias", TensorProto.FLOAT, [K])]
    outputs = [_value("logits", TensorProto.FLOAT, ["n", K]), _value("features", TensorProto.FLOAT, ["n", D])]
    return _model(nodes, inputs, outputs, weights)


def echo(datatypes: Mapping[str, int]) -> onnx.ModelProto:
    """One identity per datatype: `in_<x>` -> `out_<x>`, all of shape [n, m]."""
    nodes, inputs, outputs = [], [], []
    for name, kind in datatypes.items():
        nodes.append(helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]))
        inputs.append(_value(f"in_{name}", kind, ["n", "m"]))
        outputs.append(_value(f"out_{name}", kind, ["n", "m"]))
    return _model(nodes, inputs, outputs, [])


class Site:
    """A spoke's home: packages go into its store, slots say what is served."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.work = home.parent / f"{home.name}-build"
        home.mkdir(parents=True)

    def publish(
        self,
        version: int = 1,
        *,
        model: str = "digits",
        proto: onnx.ModelProto | None = None,
        contract: FeatureContract | None = None,
        golden_inputs: Mapping[str, np.ndarray] | None = None,
        golden_offset: float = 0.0,
        engines: tuple[str, ...] = ("onnxruntime",),
        off: onnx.ModelProto | None = None,
        memory_mb: int = 0,
    ) -> Slot:
        """Build, pack and store one version; `golden_offset` makes its golden vectors wrong.

        `off`: the model of another variant, the first one of the package, which does not give the golden outputs.
        """
        folder = self.work / f"{model}-{version}-{len(list(self.work.glob('*')) if self.work.exists() else [])}"
        (folder / "variants" / VARIANT).mkdir(parents=True)
        proto = proto or cnn(version)
        (folder / MAIN).write_bytes(proto.SerializeToString())
        if off is not None:
            (folder / OFF_MAIN).parent.mkdir()
            (folder / OFF_MAIN).write_bytes(off.SerializeToString())
        names = [*([OFF_VARIANT] if off else []), VARIANT]
        contract = contract or digits_contract()
        inputs = dict(golden_inputs or {"image": image(4, seed=99)})
        session = open_session(folder / MAIN, mode="exact")  # what the file gives, whatever CPU this is
        asked = [t.name for t in contract.outputs]
        outputs = dict(zip(asked, session.run(inputs, asked), strict=True))
        outputs = {name: a.astype(np.str_) if a.dtype.kind == "O" else a for name, a in outputs.items()}
        if golden_offset:
            outputs = {name: array + golden_offset for name, array in outputs.items()}
        write_golden(folder / GOLDEN, Golden(inputs, outputs, 1e-3, 1e-3))
        has_head = any(t.name == "head.weight" for t in proto.graph.initializer)
        spec = PackageSpec(
            model=model,
            version=version,
            title="a test",
            licence="Apache-2.0",
            created=MEASURED,
            variants=tuple(_variant(name, engines, memory_mb) for name in names),
            adapter=AdapterPoint(features="features", weight="head.weight", bias="head.bias", output="logits")
            if has_head
            else None,
            residency=Residency(zones=("eu",), regimes=("gdpr",)),
        )
        for name, page in {SPEC: spec, CONTRACT: contract, EVIDENCE: _evidence(names)}.items():
            (folder / name).write_bytes(page.canonical())
        (folder / CARD).write_text(f"# {model} {version}\n")
        index = pack(folder, self.home)
        return Slot(version=version, index=index, variant=VARIANT)

    def slots(self, model: str = "digits", **current: object) -> None:
        """Write one model's places."""
        path = self.home / "slots.json"
        write_slots(path, read_slots(path).with_model(model, ModelSlots(**current)))  # type: ignore[arg-type]

    def clear(self) -> None:
        write_slots(self.home / "slots.json", Slots())

    def weights(self, slot: Slot) -> Path:
        """The model file of a version in the store."""
        from model_formats.package import open_package

        return open_package(ImageLayout(self.home), slot.index).path(MAIN)

    def adapter(self, slot: Slot, name: str = "local", *, winner: int = 3) -> AdapterSlot:
        """An adapter that always answers one class, lying in the home's adapters folder."""
        from model_formats.core.types import digest_of_file
        from model_formats.package.adapter import write_adapter

        bias = np.zeros(K, np.float32)
        bias[winner] = 1000
        path = self.home / "adapters" / f"{name}.onnx_adapter"
        path.parent.mkdir(exist_ok=True)
        point = AdapterPoint(features="features", weight="head.weight", bias="head.bias", output="logits")
        write_adapter(path, point, np.zeros((D, K), np.float32), bias)
        return AdapterSlot(name=name, file=digest_of_file(path), base=digest_of_file(self.weights(slot)))


def digits_contract(policy: str = "refuse") -> FeatureContract:
    return FeatureContract(
        task="classification",
        inputs=(TensorContract(name="image", datatype="FP32", shape=(-1, 1, 8, 8), low=0, high=16),),
        outputs=(TensorContract(name="logits", datatype="FP32", shape=(-1, K)),),
        classes=tuple("0123456789"),
        out_of_contract=policy,  # type: ignore[arg-type]
    )


def echo_contract(datatypes: Mapping[str, int]) -> FeatureContract:
    def tensors(prefix: str) -> tuple[TensorContract, ...]:
        return tuple(TensorContract(name=f"{prefix}_{x}", datatype=x, shape=(-1, -1)) for x in datatypes)  # type: ignore[arg-type]

    return FeatureContract(task="embedding", inputs=tensors("in"), outputs=tensors("out"))


def one_node(kind: str, output: int, **attributes: object) -> onnx.ModelProto:
    """A model of floats `x`, of any length, and the `y` that one operator makes of them."""
    node = helper.make_node(kind, ["x"], ["y"], **attributes)
    return _model([node], [_value("x", TensorProto.FLOAT, ["n"])], [_value("y", output, None)], [])


def _model(nodes, inputs, outputs, weights) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _value(name: str, kind: int, shape: list | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _variant(name: str, engines: tuple[str, ...], memory_mb: int) -> VariantSpec:
    from model_formats.documents.package_spec import Requirements

    main = f"variants/{name}/model.onnx"
    return VariantSpec(
        name=name,
        format="onnx",
        precision="fp32",
        main=main,
        files=(main,),
        requires=Requirements(engines=engines, memory_mb=memory_mb),  # type: ignore[arg-type]
    )


def _evidence(names: list[str]) -> Evidence:
    found = tuple(
        VariantEvidence(
            variant=name, bytes=1, score=0.98, latency_ms_batch1=1, latency_ms_batch32=2, cpu_ms_batch32=2, recipe="as it is"
        )
        for name in names
    )
    return Evidence(
        measured=MEASURED,
        cpu="any",
        held_out_rows=100,
        metric="accuracy",
        variants=found,
        gate=GateResult(max_drop=0.01, drop=0.0, passed=True),
    )


def echo_golden(datatypes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Golden inputs for `echo`."""
    from spoke_agent.server.protocol.tensors import DTYPES

    return {f"in_{x}": np.array([["a", "b"]]) if x == "BYTES" else np.ones((1, 2), DTYPES[x]) for x in datatypes}

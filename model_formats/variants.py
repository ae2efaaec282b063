"""Variants: export, quantize, measure, and offer only those that are right and not slower."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from model_formats.contract import FeatureContract
from model_formats.data import Rows
from model_formats.evidence import GateResult, VariantEvidence
from model_formats.export.graph import load_graph, save_graph
from model_formats.export.head import expose_head
from model_formats.export.source import ExportFailed, ModelSource, ParityFailed
from model_formats.golden import Golden, check_golden
from model_formats.measure import is_slower, measure_speed, peak_rss_mb
from model_formats.quantize.dynamic import DynamicInt8
from model_formats.quantize.gate import AccuracyDropRefused, Quantized, judge, quantize_within
from model_formats.quantize.recipe import Recipe, prepare, suggest
from model_formats.quantize.static import StaticQdq
from model_formats.runtimes.base import Array, Engine, EngineMissing, LoadFailed, RunFailed
from model_formats.runtimes.choose import open_session
from model_formats.scoring import METRICS, predict, score, slices
from model_formats.spec import Requirements, VariantSpec
from model_formats.workbench import FP32, INT8, IR, Workbench

__all__ = ["drop_slow", "engines_of", "export", "measure", "quantize", "quantize_openvino", "variant_spec"]


def export(build: Workbench, source: ModelSource) -> None:
    """The fp32 variant with its head exposed; gives what the source gives, and what it gave before its head was touched."""
    contract, learning = build.options.contract, build.options.learning == "adapter"
    raw = build.folder / "raw.onnx"
    source.export(raw, contract)
    few = {n: a[:32] for n, a in build.data.held_out.inputs.items()}
    names = [o.name for o in contract.outputs]
    before = dict(zip(names, open_session(raw).run(few, names), strict=True))
    _check_width(contract, before[names[0]])
    model = load_graph(raw)
    build.point = expose_head(model, build.output) if learning else None
    build.main(FP32).parent.mkdir(parents=True)
    save_graph(model, build.main(FP32))
    raw.unlink()
    if learning and build.point is None:
        build.note("no separable linear head: this model cannot be adapted at sites")
    _check_parity(build, few, before, "the graph before its head was exposed")
    if (wanted := source.reference(few, contract)) is not None:
        _check_parity(build, few, wanted, f"the {source.format} source")
    build.recipes[FP32] = f"exported from {source.format}"


def _check_width(contract: FeatureContract, output: Array) -> None:
    width = output.shape[-1] if output.ndim > 1 else 1
    if contract.task == "classification" and width != len(contract.classes or ()):
        raise ExportFailed(
            f"output {contract.outputs[0].name!r} has {width} columns, the contract lists {len(contract.classes or ())} classes",
            hint="List one class for each column of the first output, in its order.",
        )


def _check_parity(build: Workbench, inputs: Mapping[str, Array], wanted: Mapping[str, Array], what: str) -> None:
    result = check_golden(build.open(FP32), Golden(inputs, wanted, 1e-4, 1e-3))
    if not result.ok:
        raise ParityFailed(f"{build.options.model}: the exported graph and {what} differ: {result.detail}")


def quantize(build: Workbench, reference: float) -> GateResult:
    """The INT8 variant, if the policy wants one. Raises AccuracyDropRefused when it loses too much and nobody overrides."""
    options, rows = build.options, build.calibration()
    if options.quantize == "none":
        return judge(reference, reference, options.max_drop)
    kind = suggest(load_graph(build.main(FP32))) if options.quantize == "auto" else options.quantize
    recipe: Recipe = StaticQdq(rows.inputs) if kind == "static" else DynamicInt8()
    build.say(f"quantize: {recipe.text}")
    made = _within_policy(build, recipe, rows, reference)
    gate = judge(reference, made.score, options.max_drop, options.overridden_by)
    build.say(f"gate: {METRICS[options.contract.task]} {reference:.4f} in fp32, {made.score:.4f} in INT8")
    if not gate.passed and gate.overridden_by is None:
        raise AccuracyDropRefused(
            f"{options.model}@{options.version}: INT8 loses {gate.drop:.4f}, the policy allows {options.max_drop}; "
            f"giving layers back to float did not help enough (best with: {', '.join(made.kept_float) or 'none'})"
        )
    if made.kept_float:
        build.note(f"kept in float for accuracy: {', '.join(made.kept_float)}")
    build.main(INT8).parent.mkdir(parents=True)
    made.path.replace(build.main(INT8))
    shutil.rmtree(made.path.parent)
    build.recipes[INT8], build.kept_float[INT8] = recipe.text, made.kept_float
    return gate


def _within_policy(build: Workbench, recipe: Recipe, rows: Rows, reference: float) -> Quantized:
    work = build.folder / "work"
    work.mkdir()
    prepared, out = work / "prepared.onnx", work / "int8.onnx"
    prepare(build.main(FP32), prepared)
    return quantize_within(
        recipe, prepared, out, rows.inputs, lambda path: build.score(open_session(path)), reference, build.options.max_drop
    )


def quantize_openvino(build: Workbench, reference: float) -> None:
    """The optional IR; left out, with a note, when it misses the gate."""
    from model_formats.quantize.openvino_ir import quantize_ir

    build.say("quantize: OpenVINO IR with NNCF")
    build.main(IR).parent.mkdir(parents=True)
    transformer = suggest(load_graph(build.main(FP32))) == "dynamic"
    text = quantize_ir(build.main(FP32), build.main(IR), build.calibration().inputs, transformer=transformer)
    if reference - (got := build.score(build.open(IR))) > build.options.max_drop:
        build.note(f"OpenVINO IR not offered: it loses {reference - got:.4f}")
        shutil.rmtree(build.main(IR).parent)
        return
    build.recipes[IR] = text


def measure(build: Workbench, variant: str) -> VariantEvidence:
    """Size, score, slices, latency and memory of one variant."""
    build.say(f"measure: {variant}")
    held, session = build.data.held_out, build.open(variant)
    outputs = predict(session, held.inputs, [build.output])[build.output]
    speed = measure_speed(session, held.inputs)
    return VariantEvidence(
        variant=variant,
        bytes=sum(f.stat().st_size for f in build.main(variant).parent.iterdir()),
        score=score(build.options.contract.task, outputs, held.labels),
        slices=slices(build.options.contract, outputs, held),
        latency_ms_batch1=speed.latency_ms_batch1,
        latency_ms_batch32=speed.latency_ms_batch32,
        cpu_ms_batch32=speed.cpu_ms_batch32,
        peak_rss_mb=peak_rss_mb(build.main(variant), held.inputs, engine=session.engine),
        recipe=build.recipes[variant],
        kept_float=build.kept_float.get(variant, ()),
    )


def drop_slow(build: Workbench, measured: list[VariantEvidence]) -> list[VariantEvidence]:
    """Best first; INT8 that its own engine runs no faster than fp32 is not offered."""
    kept: list[VariantEvidence] = []
    for one in measured:
        session = build.open(one.variant)
        if one.variant != FP32 and is_slower(session, build.open(FP32, session.engine), build.data.held_out.inputs):
            build.note(f"{one.variant} not offered: {session.engine} runs it no faster than fp32")
            shutil.rmtree(build.main(one.variant).parent)
        else:
            kept.append(one)
    return sorted(kept, key=lambda v: v.cpu_ms_batch32)


def variant_spec(build: Workbench, one: VariantEvidence, engines: tuple[Engine, ...]) -> VariantSpec:
    """What `package.json` says of a variant."""
    root = build.main(one.variant).parent
    return VariantSpec(
        name=one.variant,
        format="openvino-ir" if one.variant == IR else "onnx",
        precision="fp32" if one.variant == FP32 else "int8",
        main=build.main(one.variant).relative_to(build.folder).as_posix(),
        files=tuple(sorted(f.relative_to(build.folder).as_posix() for f in root.iterdir())),
        requires=Requirements(
            opset=0 if one.variant == IR else _opset(build.main(one.variant)),
            memory_mb=int(one.peak_rss_mb or 0),
            engines=engines,
        ),
        allow_bf16=build.options.allow_bf16,
    )


def _opset(path: Path) -> int:
    return next(int(o.version) for o in load_graph(path).opset_import if o.domain in ("", "ai.onnx"))


def engines_of(build: Workbench, variant: str, golden: Golden) -> tuple[Engine, ...]:
    """Engines that give the golden outputs here: the variant's own first."""
    if variant == IR:
        return ("openvino",)
    try:
        result = check_golden(build.open(variant, "openvino"), golden, variant)
    except (EngineMissing, LoadFailed, RunFailed) as e:
        build.note(f"{variant} runs on ONNX Runtime only: {e.message}")
        return ("onnxruntime",)
    if not result.ok:
        build.note(f"{variant} runs on ONNX Runtime only: on OpenVINO {result.detail}")
        return ("onnxruntime",)
    return ("onnxruntime", "openvino")

"""Makes the variants of a version: exports, quantizes and measures, and keeps those that are right and not slower than fp32."""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from model_formats.build.class_evidence import TrialData, TrialQuestion, TrialResult, needless, trials_of, try_here
from model_formats.build.dataset import Rows, write_rows
from model_formats.build.emulated import emulated_classes, try_emulated
from model_formats.build.scoring import METRICS, predict, score, slices
from model_formats.build.session import FP32, INT8, IR, BuildSession
from model_formats.core.runtime import Array, Engine
from model_formats.documents.evidence import GateResult, VariantEvidence
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import Requirements, VariantSpec
from model_formats.export.graph import load_graph, save_graph
from model_formats.export.head import expose_head
from model_formats.export.source import ExportFailed, ModelSource, ParityFailed
from model_formats.package.golden import Golden, GoldenMismatch, check_golden, write_golden
from model_formats.quantize.accuracy_gate import AccuracyDropRefused, Quantized, judge, quantize_within
from model_formats.quantize.dynamic import DynamicInt8
from model_formats.quantize.layers import QuantizeRecipe, prepare, suggest
from model_formats.quantize.static import StaticQdq
from model_formats.runtimes.benchmark import is_slower, measure_speed, peak_rss_mb
from model_formats.runtimes.select import open_exact, open_session

__all__ = [
    "drop_slow",
    "engines_of",
    "export",
    "gate_on_every_class",
    "measure",
    "quantize",
    "quantize_openvino",
    "settle",
    "try_other_classes",
    "variant_spec",
]


def export(build: BuildSession, source: ModelSource) -> None:
    """The fp32 variant with its head exposed; gives what the source gives, and what it gave before its head was touched."""
    contract, learning = build.options.contract, build.options.learning == "adapter"
    raw = build.folder / "raw.onnx"
    source.export(raw, contract)
    # Enough to see a wrong export, few enough for large models: each row is run three times.
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
    # Compared twice, so that the message says whether our change of the head or the exporter is at fault.
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


def _check_parity(build: BuildSession, inputs: Mapping[str, Array], wanted: Mapping[str, Array], what: str) -> None:
    result = check_golden(build.open(FP32), Golden(inputs, wanted, 1e-4, 1e-3))
    if not result.ok:
        raise ParityFailed(f"{build.options.model}: the exported graph and {what} differ: {result.detail}")


def quantize(build: BuildSession, reference: float) -> GateResult:
    """The INT8 variant, if the policy wants one. Raises AccuracyDropRefused when it loses too much and nobody overrides."""
    options, rows = build.options, build.calibration()
    if options.quantize == "none":
        return judge(reference, reference, options.max_drop)
    kind = suggest(load_graph(build.main(FP32))) if options.quantize == "auto" else options.quantize
    recipe: QuantizeRecipe = StaticQdq(rows.inputs) if kind == "static" else DynamicInt8()
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


def _within_policy(build: BuildSession, recipe: QuantizeRecipe, rows: Rows, reference: float) -> Quantized:
    work = build.folder / "work"
    work.mkdir()
    prepared, out = work / "prepared.onnx", work / "int8.onnx"
    prepare(build.main(FP32), prepared)
    return quantize_within(
        recipe,
        prepared,
        out,
        rows.inputs,
        lambda path: build.score(open_exact(path)),  # as it is on every CPU, not only on this one
        reference,
        build.options.max_drop,
    )


def quantize_openvino(build: BuildSession, reference: float) -> None:
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


def measure(build: BuildSession, variant: str) -> VariantEvidence:
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
        classes=build.classes.get(variant, ()),
    )


def settle(build: BuildSession, golden: Golden) -> None:
    """How each variant runs on this machine: right ways only, its own engine first. INT8 with no right way is not offered.

    Raises GoldenMismatch when fp32 has none.
    """
    data = TrialData(golden, build.data.held_out, build.options.contract.task, build.output)
    for variant in list(build.recipes):
        done: list[TrialResult] = []
        for trial in trials_of({variant: build.main(variant)}):
            if find_spec(trial.candidate.engine) is not None and not needless(trial, done):
                done.append(try_here(trial, data, timed=True))
        right = [t.trial.candidate for t in done if t.evidence.right]
        build.classes[variant] = tuple(t.evidence for t in done)
        if right:
            # Measured with the engine that the file was made for; a spoke chooses for itself.
            own = "openvino" if variant == IR else "onnxruntime"
            build.chosen[variant] = next((c for c in right if c.engine == own), right[0])
            continue
        found = "; ".join(f"{t.trial.candidate.engine} ({t.trial.candidate.mode}): {t.detail}" for t in done)
        if variant == FP32:
            raise GoldenMismatch(f"{variant}: no engine here gives what the file says: {found}")
        _leave_out(build, variant, f"no engine here gives what its file says: {found}")


def _leave_out(build: BuildSession, variant: str, why: str) -> None:
    build.note(f"{variant} not offered: {why}")
    shutil.rmtree(build.main(variant).parent)
    del build.recipes[variant]


def try_other_classes(build: BuildSession, golden: Golden) -> None:
    """Evidence for the classes of CPU that can be emulated here. Rows in an order of their own: it may not get through all."""
    classes = emulated_classes()
    if not classes:
        build.note("other classes of CPU were not tried: no qemu-user-static on this machine")
        return
    held, work = build.data.held_out, build.folder / "classes"
    work.mkdir()
    try:
        write_golden(work / "golden.npz", golden)
        # Shuffled with a fixed seed: an emulator that gets through a part has then scored a fair sample, the same each time.
        write_rows(work / "rows.npz", held.take(np.random.default_rng(0).permutation(len(held))))
        question = TrialQuestion(
            tuple(t for t in trials_of({v: build.main(v) for v in build.recipes}) if find_spec(t.candidate.engine) is not None),
            str(work / "golden.npz"),
            str(work / "rows.npz"),
            build.options.contract.task,
            build.output,
            budget_s=2.0,
        )
        for cpu_class in classes:
            build.say(f"emulate: {cpu_class}")
            done, whole = try_emulated(question, cpu_class)
            for variant in build.recipes:
                build.classes[variant] += tuple(t.evidence for t in done if t.trial.variant == variant)
            if not whole:
                build.note(f"not everything was tried on {cpu_class}: the emulator is slow")
    finally:
        shutil.rmtree(work)


def gate_on_every_class(build: BuildSession, gate: GateResult, reference: float) -> GateResult:
    """The gate's verdict on the worst right way to run INT8 on any class that scored all held-out rows.

    A way that is off the golden vectors is chosen by no spoke. Raises AccuracyDropRefused.
    """
    rows = len(build.data.held_out)
    found = [
        (one.score, variant, one)
        for variant in build.recipes
        for one in build.classes[variant]
        # A score over fewer rows is too noisy for a gate of a percent.
        if variant != FP32 and one.right and one.score is not None and one.rows == rows
    ]
    if not found:
        return gate
    worst, variant, one = min(found, key=lambda f: f[0])
    if reference - worst <= gate.drop:
        return gate
    verdict = judge(reference, worst, gate.max_drop, gate.overridden_by)
    if gate.passed and not verdict.passed and gate.overridden_by is None:
        raise AccuracyDropRefused(
            f"{build.options.model}@{build.options.version}: {variant} loses {verdict.drop:.4f} on {one.cpu_class} "
            f"({one.engine}, {one.mode}), the policy allows {gate.max_drop}"
        )
    return verdict


def drop_slow(build: BuildSession, measured: list[VariantEvidence]) -> list[VariantEvidence]:
    """Best first; INT8 that its own engine runs no faster than fp32 here is not offered, unless the author wants it to be."""
    kept: list[VariantEvidence] = []
    for one in measured:
        session = build.open(one.variant)
        timed = one.variant != FP32 and not build.options.offer_slow
        if timed and is_slower(session, build.open(FP32, session.engine), build.data.held_out.inputs):
            _leave_out(build, one.variant, f"{session.engine} runs it no faster than fp32")
        else:
            kept.append(one)
    return sorted(kept, key=lambda v: v.cpu_ms_batch32)


def variant_spec(build: BuildSession, one: VariantEvidence, engines: tuple[Engine, ...]) -> VariantSpec:
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


def engines_of(build: BuildSession, variant: str) -> tuple[Engine, ...]:
    """Engines that give the golden outputs on some class of CPU: the variant's own first."""
    right = {one.engine for one in build.classes[variant] if one.right}
    if variant != IR and right != {"onnxruntime", "openvino"}:
        build.note(f"{variant} runs on {' and '.join(sorted(right))} only: the other is missing here, or off the golden vectors")
    both: tuple[Engine, ...] = ("onnxruntime", "openvino")
    return tuple(engine for engine in both if engine in right)

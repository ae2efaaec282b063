"""Build a model folder: export, variants, gate, golden vectors, profile, anchors, evidence, card.

The folder is what `model_formats.package.pack` turns into a package. Reading order: `build_model_folder` at the end.
"""

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Literal

import numpy as np

from model_formats.adapter import Anchors, Head, write_anchors
from model_formats.calibration import confidence
from model_formats.card import card
from model_formats.contract import FeatureContract
from model_formats.data import BuildData, Rows
from model_formats.errors import OperatorError
from model_formats.estimate import Estimate, Window, fit_estimate
from model_formats.evidence import CalibrationSet, Evidence, GateResult, Lineage, VariantEvidence
from model_formats.export.graph import constants, load_graph, save_graph
from model_formats.export.head import expose_head
from model_formats.export.source import ModelSource, ParityFailed
from model_formats.golden import Golden, check_golden, write_golden
from model_formats.measure import cpu_name, is_slower, measure_speed, peak_rss_mb
from model_formats.profile import ReferenceProfile, build_profile
from model_formats.provenance import provenance
from model_formats.quantize.dynamic import DynamicInt8
from model_formats.quantize.gate import AccuracyDropRefused, judge, quantize_within
from model_formats.quantize.recipe import Recipe, prepare, suggest
from model_formats.quantize.static import StaticQdq
from model_formats.runtimes.base import Array, Engine, EngineMissing, LoadFailed, RunFailed, Session
from model_formats.runtimes.choose import open_session
from model_formats.scoring import METRICS, check_rows, predict, score, slices
from model_formats.spec import (
    ANCHORS,
    CARD,
    CONTRACT,
    EVIDENCE,
    GOLDEN,
    PROFILE,
    PROVENANCE,
    SPEC,
    AdapterPoint,
    PackageSpec,
    Requirements,
    Residency,
    VariantSpec,
)
from model_formats.types import digest_of_file

__all__ = ["BuildOptions", "BuildResult", "FolderExists", "build_model_folder", "golden_vectors"]

Regime = Literal["ae-pdpl", "ae-health", "ae-cbuae", "difc", "adgm", "gdpr", "none"]
Progress = Callable[[str], None]

FP32, INT8, IR = "onnx-fp32", "onnx-int8", "openvino-int8"
_TOLERANCE = {"fp32": (1e-4, 1e-3), "int8": (1e-3, 0.03)}
"""Golden (atol, rtol): INT8 differs between engines and between processors with and without VNNI by a few steps of its scales."""


class FolderExists(OperatorError):
    """The folder to build into is already there."""

    code = "folder_exists"
    hint = "Give a new folder, or remove the old one; nothing was overwritten."


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The author's words on one version, and the policy it is built under."""

    model: str
    version: int
    title: str
    licence: str
    contract: FeatureContract
    zones: tuple[str, ...]
    regimes: tuple[Regime, ...]
    learning: Literal["adapter", "none"] = "adapter"
    quantize: Literal["auto", "static", "dynamic", "none"] = "auto"
    openvino_ir: bool = False
    """Also make an INT8 OpenVINO IR with NNCF."""
    max_drop: float = 0.01
    """Largest loss of score from fp32 to INT8, absolute."""
    overridden_by: str | None = None
    """Who lets a failed gate through by hand; shown on the card and at every approval."""
    calibration_rows: int = 256
    golden_rows: int = 16
    anchors: int = 100
    allow_bf16: bool = False
    lineage: Lineage = field(default_factory=Lineage)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was built, and where."""

    folder: Path
    spec: PackageSpec
    contract: FeatureContract
    evidence: Evidence
    profile: ReferenceProfile
    notes: tuple[str, ...] = ()
    """What the builder decided on the way, for people: a variant not offered, an engine that differs, no adapter point."""


@dataclass(slots=True)
class _Build:
    """The work in progress."""

    folder: Path
    options: BuildOptions
    data: BuildData
    say: Progress
    point: AdapterPoint | None = None
    recipes: dict[str, str] = field(default_factory=dict)
    kept_float: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return self.options.contract.outputs[0].name

    @property
    def names(self) -> list[str]:
        """Outputs that golden vectors check: what callers see, and the features."""
        return [o.name for o in self.options.contract.outputs] + ([self.point.features] if self.point else [])

    def main(self, variant: str) -> Path:
        """The file to open."""
        return self.folder / "variants" / variant / ("model.xml" if variant == IR else "model.onnx")

    def open(self, variant: str, engine: Engine | None = None) -> Session:
        return open_session(self.main(variant), engine=engine or ("openvino" if variant == IR else "onnxruntime"))

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)


# ---- steps -----------------------------------------------------------------------------------------------------------------


def _export(build: _Build, source: ModelSource) -> None:
    """The fp32 variant, with its head exposed, and parity with the source and with itself before the head was touched."""
    path, contract = build.main(FP32), build.options.contract
    path.parent.mkdir(parents=True)
    raw = build.folder / "raw.onnx"
    source.export(raw, contract)
    few = {n: a[:32] for n, a in build.data.held_out.inputs.items()}
    want = source.reference(few, contract)
    before = dict(zip(n := [o.name for o in contract.outputs], open_session(raw).run(few, n), strict=True))
    model = load_graph(raw)
    build.point = expose_head(model, build.output) if build.options.learning == "adapter" else None
    save_graph(model, path)
    raw.unlink()
    if build.point is None:
        build.note(
            "no separable linear head: this model cannot be adapted at sites"
            if build.options.learning == "adapter"
            else "no adapter point"
        )
    for reference in [want, before]:
        if reference is not None:
            worst = check_golden(build.open(FP32), Golden(few, reference, 1e-4, 1e-3))
            if not worst.ok:
                raise ParityFailed(f"exported graph and source differ: {worst.detail}")
    build.recipes[FP32] = f"exported from {source.format}"


def _quantize(build: _Build, reference: float) -> GateResult:
    """The INT8 variant, if the policy wants one; refused when it loses too much."""
    options = build.options
    if options.quantize == "none":
        return judge(reference, reference, options.max_drop)
    rows = _calibration(build)
    kind = suggest(load_graph(build.main(FP32))) if options.quantize == "auto" else options.quantize
    recipe: Recipe = StaticQdq(rows.inputs) if kind == "static" else DynamicInt8()
    build.say(f"quantize: {recipe.text}")
    work = build.folder / "work"
    work.mkdir()
    prepare(build.main(FP32), work / "prepared.onnx")
    made = quantize_within(
        recipe,
        work / "prepared.onnx",
        work / "int8.onnx",
        rows.inputs,
        lambda p: _score(build, open_session(p)),
        reference,
        options.max_drop,
    )
    gate = judge(reference, made.score, options.max_drop, options.overridden_by)
    build.say(
        f"gate: {build_metric(options)} {reference:.4f} in fp32, {made.score:.4f} in INT8; at most {options.max_drop} may be lost"
    )
    if not gate.passed and gate.overridden_by is None:
        raise AccuracyDropRefused(
            f"{options.model}@{options.version}: INT8 loses {gate.drop:.4f}, the policy allows {options.max_drop}; "
            f"layers in float that did not help: {', '.join(made.kept_float) or 'none'}"
        )
    if made.kept_float:
        build.note(f"kept in float for accuracy: {', '.join(made.kept_float)}")
    build.main(INT8).parent.mkdir(parents=True)
    made.path.replace(build.main(INT8))
    shutil.rmtree(work)
    build.recipes[INT8], build.kept_float[INT8] = recipe.text, made.kept_float
    return gate


def build_metric(options: BuildOptions) -> str:
    """Name of the score."""
    return METRICS[options.contract.task]


def _openvino(build: _Build, reference: float) -> None:
    """The optional IR; left out, with a note, when it misses the gate."""
    from model_formats.quantize.openvino_ir import quantize_ir

    build.say("quantize: OpenVINO IR with NNCF")
    build.main(IR).parent.mkdir(parents=True)
    transformer = suggest(load_graph(build.main(FP32))) == "dynamic"
    text = quantize_ir(build.main(FP32), build.main(IR), _calibration(build).inputs, transformer=transformer)
    if reference - (got := _score(build, build.open(IR))) > build.options.max_drop:
        build.note(f"OpenVINO IR not offered: it loses {reference - got:.4f}")
        shutil.rmtree(build.main(IR).parent)
        return
    build.recipes[IR] = text


def _calibration(build: _Build) -> Rows:
    return build.data.train.take(slice(0, build.options.calibration_rows))


def _score(build: _Build, session: Session) -> float:
    held = build.data.held_out
    return score(build.options.contract.task, predict(session, held.inputs, [build.output])[build.output], held.labels)


def _measure(build: _Build, variant: str) -> VariantEvidence:
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


def _drop_slow(build: _Build, measured: list[VariantEvidence]) -> list[VariantEvidence]:
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


def _variant_spec(build: _Build, one: VariantEvidence, engines: tuple[Engine, ...]) -> VariantSpec:
    root = build.main(one.variant).parent
    opset = (
        0
        if one.variant == IR
        else next(o.version for o in load_graph(build.main(one.variant)).opset_import if o.domain in ("", "ai.onnx"))
    )
    return VariantSpec(
        name=one.variant,
        format="openvino-ir" if one.variant == IR else "onnx",
        precision="fp32" if one.variant == FP32 else "int8",
        main=build.main(one.variant).relative_to(build.folder).as_posix(),
        files=tuple(sorted(f.relative_to(build.folder).as_posix() for f in root.iterdir())),
        requires=Requirements(opset=opset, memory_mb=int(one.peak_rss_mb or 0), engines=engines),
        allow_bf16=build.options.allow_bf16,
    )


def golden_vectors(sessions: Mapping[str, Session], inputs: Mapping[str, Array], names: list[str]) -> Golden:
    """What each variant gives for these inputs, with the tolerance of its precision. The first session's is the default."""
    found: dict[str, Golden] = {}
    for variant, session in sessions.items():
        atol, rtol = _TOLERANCE["fp32" if variant == FP32 else "int8"]
        found[variant] = Golden(inputs, dict(zip(names, session.run(inputs, names), strict=True)), atol, rtol)
    first = next(iter(found.values()))
    return Golden(inputs, first.outputs, first.atol, first.rtol, found)


def _engines(build: _Build, variant: str, golden: Golden) -> tuple[Engine, ...]:
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


def _golden_rows(build: _Build) -> dict[str, Array]:
    """A few held-out rows, spread over the classes."""
    held, count = build.data.held_out, build.options.golden_rows
    if build.options.contract.task == "classification":
        order = np.argsort(held.labels, kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    else:
        chosen = np.arange(min(count, len(held)))
    return {n: np.ascontiguousarray(a[chosen]) for n, a in held.inputs.items()}


def _anchors(build: _Build, session: Session, point: AdapterPoint) -> Anchors:
    """Features of hub-owned training rows, the same number of each class."""
    train = build.data.train
    if build.options.contract.task == "classification":
        each = max(1, build.options.anchors // max(1, len(build.options.contract.classes or ())))
        chosen = np.concatenate([np.flatnonzero(train.labels == c)[:each] for c in np.unique(train.labels)])
    else:
        chosen = np.arange(min(build.options.anchors, len(train)))
    rows = train.take(np.sort(chosen))
    found = constants(load_graph(build.main(FP32)))
    features = predict(session, rows.inputs, [point.features])[point.features]
    return Anchors(np.clip(features, -6e4, 6e4).astype(np.float16), rows.labels, Head(found[point.weight], found[point.bias]))


def _profile(build: _Build, session: Session) -> ReferenceProfile:
    held, contract = build.data.held_out, build.options.contract
    outputs = predict(session, held.inputs, [build.output])
    classify = contract.task == "classification"
    correct = outputs[build.output].reshape(len(held), -1).argmax(axis=1) == held.labels if classify else None
    profile = build_profile(
        contract, held.inputs, outputs, correct=correct, more_inputs=build.data.train.inputs, seed=f"{build.options.model}"
    )
    estimate = _estimate(build, session, profile) if classify and build.point and build.data.corruptions else None
    return profile.model_copy(update={"estimate": estimate})


def _estimate(build: _Build, session: Session, profile: ReferenceProfile) -> Estimate | None:
    """Fit accuracy without labels on damaged held-out rows."""
    build.say(f"estimate: {len(build.data.corruptions)} kinds of damage")
    held, point = build.data.held_out, build.point

    def window(inputs: Mapping[str, Array]) -> tuple[Window, Array]:
        found = predict(session, inputs, [build.output, point.features if point else ""])
        scores = found[build.output].reshape(len(held), -1)
        predicted = scores.argmax(axis=1)
        return Window(
            confidence(scores, profile.scores), predicted, found[point.features if point else ""]
        ), predicted == held.labels

    clean, correct = window(held.inputs)
    shifted = [(family, *window(damage(held.inputs))) for family, damage in build.data.corruptions]
    return fit_estimate(clean, correct, shifted, len(build.options.contract.classes or ()))


def _tools() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("spokeshave", "onnx", "onnxruntime", "torch", "openvino", "nncf", "numpy"):
        try:
            found[name] = installed(name)
        except PackageNotFoundError:  # an extra that is not installed took no part
            continue
    return found


def _write(build: _Build, spec: PackageSpec, evidence: Evidence, profile: ReferenceProfile) -> None:
    folder, contract = build.folder, build.options.contract
    for name, document in ((SPEC, spec), (CONTRACT, contract), (EVIDENCE, evidence), (PROFILE, profile)):
        (folder / name).write_bytes(document.canonical())
    (folder / CARD).write_text(card(spec, contract, evidence, profile))
    files = {f.relative_to(folder).as_posix(): digest_of_file(f) for f in sorted(folder.rglob("*")) if f.is_file()}
    (folder / PROVENANCE).write_bytes(provenance(spec, evidence, files, _tools(), evidence.measured))


def _assemble(build: _Build, source: ModelSource) -> BuildResult:
    options = build.options
    build.say(f"export: {source.format}")
    _export(build, source)
    reference = _score(build, build.open(FP32))
    gate = _quantize(build, reference)
    if options.openvino_ir:
        _openvino(build, reference)
    measured = _drop_slow(build, [_measure(build, variant) for variant in build.recipes])
    build.say("golden vectors, profile, anchors")
    sessions = {v.variant: build.open(v.variant) for v in measured}
    golden = golden_vectors(sessions, _golden_rows(build), build.names)
    write_golden(build.folder / GOLDEN, golden)
    best = next(s for v, s in sessions.items() if v != IR)
    profile = _profile(build, best)
    if build.point:
        write_anchors(build.folder / ANCHORS, _anchors(build, best, build.point))
    now = datetime.now(UTC)
    evidence = _evidence(build, measured, gate, now, source.format)
    spec = PackageSpec(
        model=options.model,
        version=options.version,
        title=options.title,
        licence=options.licence,
        created=now,
        variants=tuple(_variant_spec(build, v, _engines(build, v.variant, golden)) for v in measured),
        adapter=build.point,
        residency=Residency(zones=options.zones, regimes=options.regimes, learning=options.learning if build.point else "none"),
    )
    _write(build, spec, evidence, profile)
    return BuildResult(build.folder, spec, options.contract, evidence, profile, tuple(build.notes))


def _evidence(build: _Build, measured: list[VariantEvidence], gate: GateResult, now: datetime, source: str) -> Evidence:
    calibration = _calibration(build)
    return Evidence(
        measured=now,
        cpu=cpu_name(),
        held_out_rows=len(build.data.held_out),
        metric=METRICS[build.options.contract.task],
        variants=tuple(measured),
        gate=gate,
        calibration=None
        if build.options.quantize == "none"
        else CalibrationSet(digest=calibration.digest, rows=len(calibration)),
        lineage=build.options.lineage.model_copy(update={"source_format": source}),
    )


def build_model_folder(
    source: ModelSource, out: Path, data: BuildData, options: BuildOptions, progress: Progress = lambda _: None
) -> BuildResult:
    """Write the model folder `out`, which must not exist.

    Raises FolderExists, LabelsRefused, SourceRefused, ExportFailed, ParityFailed, QuantizeFailed, AccuracyDropRefused,
    ProfileRefused; then nothing is left behind. Takes seconds for small models; `progress` gets a line a step.
    """
    if out.exists():
        raise FolderExists(f"{out} already exists")
    check_rows(options.contract, data.train, "training rows")
    check_rows(options.contract, data.held_out, "held-out rows")
    beside = out.with_name(f".{out.name}.building")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        result = _assemble(_Build(beside, options, data, progress), source)
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return BuildResult(out, result.spec, result.contract, result.evidence, result.profile, result.notes)

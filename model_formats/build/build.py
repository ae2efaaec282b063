"""Build a model folder: export, variants, gate, golden vectors, profile, anchors, evidence, card.

The folder is what `model_formats.package.pack` turns into a package. Steps live in `variants.py` and `reference_data.py`.
"""

import platform
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from model_formats.build.dataset import BuildData
from model_formats.build.model_card import card
from model_formats.build.provenance import provenance
from model_formats.build.reference_data import anchors_of, golden_rows, golden_vectors, profile_of
from model_formats.build.scoring import METRICS, check_rows
from model_formats.build.session import FP32, IR, BuildOptions, BuildSession, Progress
from model_formats.build.variants import (
    drop_slow,
    engines_of,
    export,
    gate_on_every_class,
    measure,
    quantize,
    quantize_openvino,
    settle,
    try_other_classes,
    variant_spec,
)
from model_formats.core.errors import OperatorError
from model_formats.core.types import ModelRef, digest_of_file
from model_formats.documents.evidence import CalibrationSet, Evidence, GateResult, VariantEvidence
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import (
    ANCHORS,
    CARD,
    CONTRACT,
    EVIDENCE,
    GOLDEN,
    PROFILE,
    PROVENANCE,
    SPEC,
    PackageSpec,
    Residency,
)
from model_formats.export.source import ModelSource
from model_formats.package.adapter import write_anchors
from model_formats.package.golden import Golden, write_golden
from model_formats.runtimes.benchmark import cpu_name
from model_formats.statistics.reference_profile import ReferenceProfile

__all__ = ["BuildOptions", "BuildResult", "FolderExists", "build_model_folder"]


class FolderExists(OperatorError):
    """The folder to build into is already there."""

    code = "folder_exists"
    hint = "Give a new folder, or remove the old one; nothing was overwritten."


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


def _assemble(build: BuildSession, source: ModelSource) -> BuildResult:
    build.say(f"export: {source.format}")
    export(build, source)
    reference = build.score(build.open(FP32))
    _doubt(build, reference)
    gate = quantize(build, reference)
    if build.options.openvino_ir:
        quantize_openvino(build, reference)
    build.say("golden vectors")
    golden = golden_vectors({v: build.main(v) for v in build.recipes}, golden_rows(build), build.names, build.note)
    settle(build, golden)
    measured = drop_slow(build, [measure(build, variant) for variant in build.recipes])
    if build.options.emulate:
        try_other_classes(build, golden)
    gate = gate_on_every_class(build, gate, reference)
    measured = [one.replace(classes=build.classes[one.variant]) for one in measured]
    build.say("profile, anchors")
    profile = _references(build, measured, golden)
    now = datetime.now(UTC)
    spec, evidence = _spec(build, measured, now), _evidence(build, measured, gate, now, source.format)
    _warn_of_classes(build, evidence)
    _write(build, spec, evidence, profile)
    return BuildResult(build.folder, spec, build.options.contract, evidence, profile, tuple(build.notes))


def _doubt(build: BuildSession, reference: float) -> None:
    """Say so when a classifier is no better than naming the most frequent class: its classes may stand in another order."""
    names = build.options.contract.classes
    if build.options.contract.task != "classification" or not names:
        return
    counts = np.bincount(build.data.held_out.labels.astype(np.int64), minlength=len(names))
    most = int(counts.argmax())
    if reference <= (share := counts[most] / counts.sum()):
        build.note(
            f"held-out accuracy {reference:.4f} is no better than always saying {names[most]!r} ({share:.4f}): are the classes "
            "in the order of the model's outputs?"
        )


def _references(build: BuildSession, measured: list[VariantEvidence], golden: Golden) -> ReferenceProfile:
    best = build.open(next(v.variant for v in measured if v.variant != IR))
    offered = {name: one for name, one in golden.variants.items() if name in build.recipes}
    write_golden(build.folder / GOLDEN, replace(golden, variants=offered))
    if build.point:
        write_anchors(build.folder / ANCHORS, anchors_of(build, best, build.point))
    return profile_of(build, best)


def _spec(build: BuildSession, measured: list[VariantEvidence], now: datetime) -> PackageSpec:
    options = build.options
    return PackageSpec(
        model=options.model,
        version=options.version,
        title=options.title,
        licence=options.licence,
        created=now,
        variants=tuple(variant_spec(build, v, engines_of(build, v.variant)) for v in measured),
        adapter=build.point,
        residency=Residency(zones=options.zones, regimes=options.regimes, learning=options.learning if build.point else "none"),
    )


def _evidence(build: BuildSession, measured: list[VariantEvidence], gate: GateResult, now: datetime, source: str) -> Evidence:
    calibration = build.calibration()
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
        lineage=build.options.lineage.replace(source_format=source),
    )


def _warn_of_classes(build: BuildSession, evidence: Evidence) -> None:
    """Say on which classes of CPU no variant is right: spokes of these will turn the version away."""
    tried = {one.cpu_class for v in evidence.variants for one in v.classes}
    for cpu_class in sorted(c for c in tried if not evidence.variants_for(c)):
        build.note(f"no variant is right on {cpu_class}: spokes with such a CPU will not take this version")


def _tools() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("spokeshave", "onnx", "onnxruntime", "torch", "openvino", "nncf", "numpy"):
        try:
            found[name] = installed(name)
        except PackageNotFoundError:  # an extra that is not installed took no part
            continue
    return found


def _write(build: BuildSession, spec: PackageSpec, evidence: Evidence, profile: ReferenceProfile) -> None:
    folder, contract = build.folder, build.options.contract
    for asset in build.options.assets:
        (folder / "assets").mkdir(exist_ok=True)
        shutil.copyfile(asset, folder / "assets" / asset.name)
    for name, document in ((SPEC, spec), (CONTRACT, contract), (EVIDENCE, evidence), (PROFILE, profile)):
        (folder / name).write_bytes(document.canonical())
    (folder / CARD).write_text(card(spec, contract, evidence, profile))
    files = {f.relative_to(folder).as_posix(): digest_of_file(f) for f in sorted(folder.rglob("*")) if f.is_file()}
    (folder / PROVENANCE).write_bytes(provenance(spec, evidence, files, _tools(), evidence.measured))


def build_model_folder(
    source: ModelSource, out: Path | str, data: BuildData, options: BuildOptions, progress: Progress = lambda _: None
) -> BuildResult:
    """Write the model folder `out`, which must not exist.

    Raises OperatorError for a name that is none, FolderExists, LabelsRefused, SourceRefused, ExportFailed, ParityFailed,
    QuantizeFailed, AccuracyDropRefused, GoldenMismatch, ProfileRefused; then nothing is left behind. Takes
    seconds for small models; `progress` gets a line a step.
    """
    out = Path(out)
    ModelRef.parse(f"{options.model}@{options.version}")
    if out.exists():
        raise FolderExists(f"{out} already exists")
    check_rows(options.contract, data.train, "training rows")
    check_rows(options.contract, data.held_out, "held-out rows")
    beside = out.with_name(f".{out.name}.building")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        result = _assemble(BuildSession(beside, options, data, progress), source)
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return BuildResult(out, result.spec, result.contract, result.evidence, result.profile, result.notes)

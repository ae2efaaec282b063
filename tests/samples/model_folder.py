"""A small model folder with everything a package needs; its weights are noise, so no runtime is needed to make it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from model_formats.core.cpu_class import CpuClass
from model_formats.documents.evidence import ClassEvidence, Evidence, GateResult, VariantEvidence
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.documents.package_spec import CARD, CONTRACT, EVIDENCE, SPEC, PackageSpec, Residency, VariantSpec
from model_formats.package import ImageLayout, pack

MEASURED = datetime(2026, 1, 1, tzinfo=UTC)
WEIGHTS = "variants/onnx-int8/model.onnx"
VOCABULARY = "variants/onnx-int8/words.vocab"


def write_model_folder(
    folder: Path,
    *,
    model: str = "digits",
    version: int = 1,
    weights: bytes | None = None,
    vocabulary: bytes | None = None,
    off_on: Mapping[str, tuple[CpuClass, ...]] | None = None,
) -> Path:
    """Two variants: `onnx-int8` (300 000 bytes of noise unless given, with a vocabulary if given) and `onnx-fp32` (600 000).

    `off_on`: classes of CPU on which a variant is off, by its evidence.
    """
    noise = np.random.default_rng(version)
    variants = {
        "onnx-int8": noise.bytes(300_000) if weights is None else weights,
        "onnx-fp32": noise.bytes(600_000),
    }
    for name, data in variants.items():
        (folder / "variants" / name).mkdir(parents=True)
        (folder / "variants" / name / "model.onnx").write_bytes(data)
    if vocabulary is not None:
        (folder / VOCABULARY).write_bytes(vocabulary)
    spec = _spec(model, version, list(variants), () if vocabulary is None else (VOCABULARY,))
    pages = {SPEC: spec, CONTRACT: _contract(), EVIDENCE: _evidence(list(variants), off_on)}
    for name, page in pages.items():
        (folder / name).write_bytes(page.canonical())
    (folder / CARD).write_text(f"# {model} {version}\n")
    return folder


def packed(folder: Path, **kwargs: object) -> tuple[ImageLayout, str]:
    """The same, packed: the layout and the digest of the index."""
    source = write_model_folder(folder / "source", **kwargs)  # type: ignore[arg-type]
    index = pack(source, folder / "layout")
    return ImageLayout(folder / "layout"), index


def _spec(model: str, version: int, variants: list[str], beside: tuple[str, ...] = ()) -> PackageSpec:
    return PackageSpec(
        model=model,
        version=version,
        title="Handwritten digits",
        licence="Apache-2.0",
        created=MEASURED,
        variants=tuple(_variant(name, beside) for name in variants),
        residency=Residency(zones=("me", "eu"), regimes=("ae-pdpl", "gdpr")),
    )


def _variant(name: str, beside: tuple[str, ...]) -> VariantSpec:
    main, precision = f"variants/{name}/model.onnx", "int8" if "int8" in name else "fp32"
    files = (main, *(path for path in beside if path.startswith(f"variants/{name}/")))
    return VariantSpec(name=name, format="onnx", precision=precision, main=main, files=files)  # type: ignore[arg-type]


def _contract() -> FeatureContract:
    return FeatureContract(
        task="classification",
        inputs=(TensorContract(name="image", datatype="FP32", shape=(-1, 1, 8, 8), low=0, high=16),),
        outputs=(TensorContract(name="logits", datatype="FP32", shape=(-1, 10)),),
        classes=tuple("0123456789"),
    )


def _evidence(variants: list[str], off_on: Mapping[str, tuple[CpuClass, ...]] | None = None) -> Evidence:
    return Evidence(
        measured=MEASURED,
        cpu="any",
        held_out_rows=100,
        metric="accuracy",
        variants=tuple(
            VariantEvidence(
                variant=v,
                bytes=1,
                score=0.98,
                latency_ms_batch1=1,
                latency_ms_batch32=2,
                cpu_ms_batch32=2,
                recipe="noise",
                classes=tuple(
                    ClassEvidence(cpu_class=c, engine="onnxruntime", score=0.98, worst=4.9) for c in (off_on or {}).get(v, ())
                ),
            )
            for v in variants
        ),
        gate=GateResult(max_drop=0.01, drop=0.0, passed=True),
    )

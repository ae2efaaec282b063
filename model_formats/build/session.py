"""One build in progress: its options, its folder, and what was decided so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from model_formats.build.dataset import BuildData, Rows
from model_formats.build.scoring import predict, score
from model_formats.core.runtime import Candidate, Engine, Session
from model_formats.documents.evidence import ClassEvidence, Lineage
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import AdapterPoint
from model_formats.runtimes.select import open_exact, open_session

__all__ = ["FP32", "INT8", "IR", "BuildOptions", "Progress", "BuildSession"]

Regime = Literal["ae-pdpl", "ae-health", "ae-cbuae", "difc", "adgm", "gdpr", "none"]
Progress = Callable[[str], None]
"""Gets a line whenever a step begins or something was decided."""

FP32, INT8, IR = "onnx-fp32", "onnx-int8", "openvino-int8"
"""Names of the variants that we build."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What the author states about a version, and the policy of the build."""

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
    emulate: bool = False
    """Also try the variants on the classes of CPU that qemu plays on this machine: about 10 s a class."""
    offer_slow: bool = False
    """Keep INT8 that this machine runs no faster than fp32: for fleets of other CPUs."""
    max_drop: float = 0.01
    """Largest loss of score from fp32 to INT8, absolute."""
    overridden_by: str | None = None
    """Who lets a failed gate through by hand; shown on the card and at every approval."""
    calibration_rows: int = 256
    golden_rows: int = 16
    anchors: int = 100
    allow_bf16: bool = False
    assets: tuple[Path, ...] = ()
    """What callers need beside the model (vocabulary, label map): copied into `assets/` and signed with the rest."""
    lineage: Lineage = field(default_factory=Lineage)


@dataclass(slots=True)
class BuildSession:
    """The work in progress."""

    folder: Path
    options: BuildOptions
    data: BuildData
    say: Progress
    point: AdapterPoint | None = None
    recipes: dict[str, str] = field(default_factory=dict)
    kept_float: dict[str, tuple[str, ...]] = field(default_factory=dict)
    chosen: dict[str, Candidate] = field(default_factory=dict)
    """How a variant runs on this machine, once that is settled."""
    classes: dict[str, tuple[ClassEvidence, ...]] = field(default_factory=dict)
    """What variants do on classes of CPU."""
    notes: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """The first output of the contract."""
        return self.options.contract.outputs[0].name

    @property
    def names(self) -> list[str]:
        """Outputs that golden vectors check: what callers see, and the features."""
        return [o.name for o in self.options.contract.outputs] + ([self.point.features] if self.point else [])

    def main(self, variant: str) -> Path:
        """The file to open."""
        return self.folder / "variants" / variant / ("model.xml" if variant == IR else "model.onnx")

    def open(self, variant: str, engine: Engine | None = None) -> Session:
        """Open a variant as was chosen for this machine, or exactly with its own engine before that; or with another engine."""
        if engine is None and variant != IR and variant not in self.chosen:
            return open_exact(self.main(variant))
        chosen = self.chosen.get(variant, Candidate("openvino" if variant == IR else "onnxruntime"))
        engine = engine or chosen.engine
        return open_session(self.main(variant), engine=engine, mode=chosen.mode if engine == chosen.engine else "fast")

    def note(self, text: str) -> None:
        """Say it now, and again in the result."""
        self.notes.append(text)
        self.say(text)

    def calibration(self) -> Rows:
        """The training rows that quantization may see."""
        return self.data.train.take(slice(0, self.options.calibration_rows))

    def score(self, session: Session) -> float:
        """The metric on the held-out rows."""
        held = self.data.held_out
        return score(self.options.contract.task, predict(session, held.inputs, [self.output])[self.output], held.labels)

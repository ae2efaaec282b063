"""`evidence.json`: what was measured before the package was signed. Numbers only, never rows."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from model_formats.core.cpu_class import CpuClass
from model_formats.core.document import Document, Value
from model_formats.core.runtime import Engine, Mode
from model_formats.core.types import AwareDatetime, Digest, Name

__all__ = ["CalibrationSet", "ClassEvidence", "Evidence", "GateResult", "Lineage", "SliceScore", "VariantEvidence"]

Share = Annotated[float, Meta(ge=0, le=1)]


class SliceScore(Value):
    """A score on part of the held-out rows: a class, or a value of a column the author names."""

    column: str
    value: str
    rows: int
    score: float


class ClassEvidence(Value):
    """One variant on a class of CPU, run one way."""

    cpu_class: CpuClass
    engine: Engine
    mode: Mode = "fast"
    score: float | None
    """As the variant's; None where it did not run there."""
    worst: Annotated[float, Meta(ge=0)] | None
    """Largest deviation from the golden vectors in units of what is allowed; None where it did not run, or gave no numbers."""
    rows: int | None = None
    """Held-out rows that the score is of: an emulator is slow, and may not get through all."""
    emulated: bool = False
    """Seen under an emulator of such a CPU: answers are the same there, times are not."""
    latency_ms_batch32: float | None = None
    """Only where it was measured on such a CPU."""

    @property
    def right(self) -> bool:
        """It gives the golden outputs there."""
        return self.worst is not None and self.worst <= 1


class VariantEvidence(Value):
    """One variant on the held-out rows and on the build machine's CPU."""

    variant: Name
    bytes: int
    score: float
    """Accuracy for classification (share), coefficient of determination for regression, cosine parity for embeddings."""
    slices: tuple[SliceScore, ...] = ()
    latency_ms_batch1: float
    latency_ms_batch32: float
    cpu_ms_batch32: float
    peak_rss_mb: float | None = None
    recipe: str
    """How the variant was made, for example `static QDQ per-channel MinMax, 256 calibration rows`."""
    kept_float: tuple[str, ...] = ()
    """Layers given back to float by the accuracy gate."""
    classes: tuple[ClassEvidence, ...] = ()
    """What it does on classes of CPU, a row for each way to run it; a class that is not in it was not tried."""

    def right_on(self, cpu_class: CpuClass) -> bool | None:
        """Whether some way to run it gives the golden outputs on that class; None where nobody tried."""
        found = [one for one in self.classes if one.cpu_class == cpu_class]
        return any(one.right for one in found) if found else None


class GateResult(Value):
    """The policy and its verdict."""

    max_drop: float
    drop: float
    passed: bool
    overridden_by: str | None = None
    """Who let it through by hand, if anybody did; shown on the card and at every approval."""


class CalibrationSet(Value):
    """The rows that quantization saw, by digest; they are not in the package."""

    digest: Digest
    rows: int


class Lineage(Value):
    """Where the weights come from."""

    dataset: Digest | None = None
    rows: int | None = None
    run: str | None = None
    code_version: str | None = None
    parameters: dict[str, str | int | float | bool] = field(default_factory=dict)
    source_format: str = "torch"
    parent: Digest | None = None


class Evidence(Document):
    """`evidence.json` of a package."""

    max_bytes: ClassVar[int] = 4 << 20

    kind: Literal["evidence"] = "evidence"
    schema_: Literal[1] = 1
    measured: AwareDatetime
    cpu: str
    held_out_rows: int
    metric: Literal["accuracy", "r2", "cosine"]
    variants: tuple[VariantEvidence, ...]
    gate: GateResult
    calibration: CalibrationSet | None = None
    lineage: Lineage = Lineage()

    def claim(self, variant: str) -> float | None:
        """The score the author claims for a variant."""
        return next((v.score for v in self.variants if v.variant == variant), None)

    def variants_for(self, cpu_class: CpuClass) -> tuple[str, ...]:
        """Variants, best first, that the evidence does not rule out on that class; empty: it rules out every one."""
        return tuple(v.variant for v in self.variants if v.right_on(cpu_class) is not False)

"""The record of a training run: parameters, data digests, metrics of every epoch, digest of the weights, code version."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document
from model_formats.core.types import AwareDatetime, Digest, Name

__all__ = ["Progress", "RunRecord", "Track"]

Progress = Callable[[str], None]
"""Gets a line whenever something has happened."""


class RunRecord(Document):
    """`run.json`."""

    kind: Literal["training-run"] = "training-run"
    schema_: Literal[1] = 1
    max_bytes: ClassVar[int] = 4 << 20
    run: Name
    recipe: Annotated[str, Meta(max_length=200)]
    started: AwareDatetime
    seconds: float
    device: str
    parameters: dict[str, str | int | float | bool]
    dataset: Digest
    rows: int
    held_out: Digest
    epochs: tuple[dict[str, float], ...]
    metrics: dict[str, float]
    weights: Digest
    code_version: str


@dataclass(slots=True)
class Track:
    """Collects what happens during a run and tells it on."""

    progress: Progress
    epochs: list[dict[str, float]] = field(default_factory=list)

    def epoch(self, number: int, of: int, metrics: dict[str, float]) -> None:
        """One pass is over."""
        self.epochs.append({"epoch": float(number), **metrics})
        told = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.progress(f"epoch {number} of {of}: {told}")

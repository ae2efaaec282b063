"""The state of the monitor for one model, kept over restarts: a cursor, the detector, and sums that were not yet offered."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document, DocumentRefused, Value
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime, Digest, Name
from spoke_agent.drift.adwin import Adwin
from spoke_agent.drift.detector import Detector
from sync.protocol.egress import Level

__all__ = ["DriftState", "Sums", "read_state", "write_state"]


class Sums(Value):
    """Counts and joint sums of windows that were tested but not yet sent."""

    rows: int = 0
    start: AwareDatetime | None = None
    end: AwareDatetime | None = None
    counts: tuple[tuple[int, ...], ...] = ()
    joint: tuple[float, ...] = ()


class DriftState(Document):
    """`drift/<model>.json`. It holds counts of local rows, so it stays at the site like them."""

    max_bytes: ClassVar[int] = 8 << 20

    kind: Literal["drift-state"] = "drift-state"
    schema_: Literal[1] = 1
    model: Name
    version: Annotated[int, Meta(ge=1)]
    index: Digest
    cursor: int = 0
    """Last stored batch that was seen."""
    detector: Detector
    early: Adwin = Adwin()
    tested: AwareDatetime | None = None
    told: AwareDatetime | None = None
    told_level: Level | None = None
    estimated: AwareDatetime | None = None
    sums: Sums = Sums()


def read_state(path: Path) -> DriftState | None:
    """The state, or None where there is none. A damaged one counts as none: the watch starts afresh and sends nothing twice."""
    try:
        return DriftState.parse(path.read_bytes())
    except (FileNotFoundError, DocumentRefused):
        return None


def write_state(path: Path, state: DriftState) -> None:
    """Replace the state, durably."""
    atomic_write(path, state.canonical(), mode=0o600)

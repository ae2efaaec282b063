"""Erases rows and everything made from them, and writes a signed record of it.

    1. the rows, their labels and handles (content overwritten in the file)
    2. adapters that were fitted on any of them, in slots and on disk
    3. drift sums that counted them and had not left yet
    4. where a retired adapter answered, a head is fitted on the rows that are left, if they prove one

What left through the outbox cannot be called back; it holds no rows (docs/residency.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol

from msgspec import Meta

from model_formats.core.document import Document
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime, Name
from spoke_agent.adapters.store import Retired
from spoke_agent.data.store import DataStore
from sync.core.clock import Clock
from sync.trust.dsse import seal
from sync.trust.keys import Signer

__all__ = ["Derived", "ErasureRecord", "Scope", "erase"]


class ErasureRecord(Document):
    """What was erased, without saying whose: kept at the site as proof, in `erasures/`."""

    max_bytes: ClassVar[int] = 256 * 1024

    kind: Literal["erasure"] = "erasure"
    schema_: Literal[1] = 1
    time: AwareDatetime
    scope: Literal["subject", "before", "all"]
    before: AwareDatetime | None = None
    rows: Annotated[int, Meta(ge=0)]
    adapters: tuple[Name, ...]
    retrained: tuple[Name, ...] = ()
    """Heads that were fitted on what is left, in place of adapters that answered."""
    drift_sums_reset: bool


@dataclass(frozen=True, slots=True)
class Scope:
    """What to erase: some requests, all before a moment, or everything."""

    request_ids: Sequence[str] = ()
    before: datetime | None = None
    everything: bool = False

    @property
    def name(self) -> Literal["subject", "before", "all"]:
        """In the record's words."""
        return "all" if self.everything else "before" if self.before else "subject"


class Derived(Protocol):
    """What was made from rows (`spoke_agent.tuning.tuner.Tuner`)."""

    def forget(self, batches: frozenset[int]) -> list[Retired]:
        """Retire the adapters fitted on any of these batches."""

    def renew(self, model: str) -> str | None:
        """Fit a head anew on the rows that are left; its name, or None where they prove none."""


def erase(home: Path, data: DataStore, scope: Scope, *, derived: Derived, clock: Clock, signer: Signer) -> ErasureRecord:
    """Erase and write the signed record. What was made from the rows goes first, lest it outlive them."""
    retired = derived.forget(data.touched(before=scope.before, request_ids=scope.request_ids, everything=scope.everything))
    rows = data.erase(before=scope.before, request_ids=scope.request_ids, everything=scope.everything)
    reset = _reset_drift(home) if rows else False
    renewed = [derived.renew(model) for model in sorted({r.model for r in retired if r.answered})]
    record = ErasureRecord(
        time=clock.now().replace(microsecond=0),
        scope=scope.name,
        before=scope.before,
        rows=rows,
        adapters=tuple(r.name for r in retired),
        retrained=tuple(name for name in renewed if name is not None),
        drift_sums_reset=reset,
    )
    atomic_write(home / "erasures" / f"{record.time:%Y%m%dT%H%M%SZ}-{record.digest[7:15]}.json", seal(record, signer), mode=0o600)
    return record


def _reset_drift(home: Path) -> bool:
    """The monitor starts its sums afresh; the detector's one number says nothing about any row and stays."""
    from spoke_agent.drift.state import Sums, read_state, write_state

    found = False
    for path in (home / "drift").glob("*.json"):
        state = read_state(path)
        if state is not None and state.sums.rows:
            write_state(path, state.replace(sums=Sums(end=state.sums.end)))
            found = True
    return found

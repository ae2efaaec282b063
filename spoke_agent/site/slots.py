"""Which version is served: one small document on disk, the only thing agent and server both read.

The agent writes it (atomically); the server follows it. `last_good` is pinned in the store for ever, until something better is
committed. A server that starts alone after a power cut needs nothing but this file and the store.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from model_formats.core.document import Document, Value
from model_formats.core.file_lock import FileLock
from model_formats.core.files import atomic_write
from model_formats.core.types import Digest, Name

__all__ = ["AdapterSlot", "ChallengerSlot", "ModelSlots", "Slot", "Slots", "edit_slots", "read_slots", "write_slots"]


class Slot(Value):
    """A verified version in the store, with the variant chosen for this machine."""

    version: Annotated[int, Meta(ge=1)]
    index: Digest
    variant: Name


class AdapterSlot(Value):
    """A locally tuned head, bound to the base file it was fitted on."""

    name: Name
    file: Digest
    base: Digest
    """Digest of the model file; the server refuses the adapter on any other."""
    probation: bool = False
    """It answers, and has yet to stand the labels of the rows that it answered (`spoke_agent.tuning.adapter_lifecycle`)."""


class ChallengerSlot(Value):
    """A version that answers a part of the callers: the candidate, or one of its own that updates leave alone.

    Bound to one version, so that the next candidate does not inherit it; and to the champion it was set against (`against`), so
    that it rests while another answers and is over when that one is committed.
    """

    index: Digest
    percent: Annotated[int, Meta(ge=1, le=100)]
    """Of the requests that name neither a version nor an adapter."""
    slot: Slot | None = None
    """Loaded for this alone; None: the candidate."""
    against: Digest | None = None
    """Index of the champion; None: whichever."""
    sticky_only: bool = False
    """Only callers that send a key (parameter `sticky`) take part, so that nobody meets both versions."""


class ModelSlots(Value):
    """The places of one model."""

    champion: Slot | None = None
    candidate: Slot | None = None
    """Loaded beside the champion. It answers nobody but its share as a challenger; in shadow it sees mirrored rows."""
    challenger: ChallengerSlot | None = None
    last_good: Slot | None = None
    """What a rollback goes to; kept loaded while the champion is in probation."""
    adapter: AdapterSlot | None = None
    """Default adapter for the champion's answers."""
    probation: bool = False

    @property
    def challenging(self) -> ChallengerSlot | None:
        """The challenger, where the champion is the one it was set against."""
        share, champion = self.challenger, self.champion
        if share is None or champion is None or share.against not in (None, champion.index):
            return None
        return share


class Slots(Document):
    """`slots.json`."""

    max_bytes: ClassVar[int] = 1 << 20

    kind: Literal["slots"] = "slots"
    schema_: Literal[1] = 1
    models: dict[Name, ModelSlots] = field(default_factory=dict)

    def with_model(self, name: str, slots: ModelSlots) -> "Slots":
        """A copy with one model's places replaced."""
        return Slots(models={**self.models, name: slots})

    def without_model(self, name: str) -> "Slots":
        """A copy in which a model has no places any more."""
        return Slots(models={k: v for k, v in self.models.items() if k != name})

    def pinned(self) -> frozenset[str]:
        """Index digests that the store must keep."""
        return frozenset(
            slot.index
            for m in self.models.values()
            for slot in (m.champion, m.candidate, m.last_good, m.challenger.slot if m.challenger else None)
            if slot is not None
        )


def read_slots(path: Path) -> Slots:
    """Read `slots.json`; no file is no models. Raises DocumentRefused on a damaged file."""
    return Slots.parse(path.read_bytes()) if path.exists() else Slots()


def write_slots(path: Path, slots: Slots) -> None:
    """Replace `slots.json`, durably."""
    atomic_write(path, slots.canonical(), mode=0o600)


def edit_slots(path: Path, model: str, change: Callable[[ModelSlots], ModelSlots]) -> ModelSlots:
    """Change one model's places under a lock (agent and `spoke tune` both write); empty places are dropped. Returns the new ones.

    Nothing is written when nothing changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        slots = read_slots(path)
        before = slots.models.get(model, ModelSlots())
        after = change(before)
        if after != before:
            write_slots(path, slots.with_model(model, after) if after != ModelSlots() else slots.without_model(model))
        return after

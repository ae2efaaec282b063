"""One model's update as a frozen value: the wanted version, the state, and the evidence so far."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

from spoke_agent.site.slots import Slot
from sync.core.types import Reason, State
from sync.protocol.messages import DesiredModel, UpdateEvidence

__all__ = ["Timer", "Update", "fresh"]


@dataclass(frozen=True, slots=True)
class Timer:
    """When a state was entered: by the wall clock, by the monotonic clock, and in which boot."""

    wall: datetime
    monotonic: float
    boot: str

    def elapsed(self, now: "Timer") -> float:
        """Seconds in the state. After a reboot only wall time is left, and a clock that ran backwards counts as no time."""
        if self.boot == now.boot:
            return max(0.0, now.monotonic - self.monotonic)
        return max(0.0, (now.wall - self.wall).total_seconds())


@dataclass(frozen=True, slots=True)
class Update:
    """A row of the journal."""

    model: str
    desired: DesiredModel
    generation: int
    state: State
    reason: Reason
    entered: Timer
    saves: int = 0
    """Saves since the directive offered this version; MAX_SAVES ends it."""
    crashes: int = 0
    """Times that probation was found begun at a start of the agent."""
    base: Slot | None = None
    """What was served when this update began: where a rollback goes."""
    variant: str | None = None
    """The variant chosen for this machine, from ADMITTED on."""
    fault_at: Timer | None = None
    """When the fault was seen that ends this update; `rollback_ms` counts from here."""
    evidence: UpdateEvidence = field(default_factory=UpdateEvidence)

    def seen(self, **counts: object) -> Self:
        """A copy with some evidence replaced."""
        return replace(self, evidence=self.evidence.replace(**counts)) if counts else self


def fresh(desired: DesiredModel, generation: int, now: Timer, *, base: Slot | None = None) -> Update:
    """A new update, not yet begun."""
    return Update(desired.model, desired, generation, State.IDLE, Reason.NONE, now, base=base)

"""Decides whether the clock can be trusted. Rows are erased by age, and a clock that jumps a year ahead must not erase them all.

A clock that moves on by small steps is trusted. After a step of more than `STEP_S`, either way, it is trusted again when it has
moved on by `TRIAL_S` in small steps. Until then nothing is erased by age; the limits of rows and bytes still hold. So a site that
was off for months erases what became too old one day of work later.
"""

import json
from typing import Self

from msgspec import Struct
from msgspec.structs import asdict, replace

__all__ = ["STEP_S", "TRIAL_S", "ClockGuard"]

STEP_S = 3 * 86400.0
"""A shop's long weekend, seconds."""
TRIAL_S = 86400.0
_NOTED_S = 60.0
"""Steps that are not worth a write to a small disk."""


class ClockGuard(Struct, frozen=True):
    """What is known of the clock, in Unix seconds. Stored beside the rows as text."""

    seen: float
    """What it said last, or up to a minute before."""
    trial: float | None = None
    """What it said when its trial began; None: it is believed."""

    @classmethod
    def read(cls, text: str) -> Self:
        """From `text`."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """To be read again."""
        return json.dumps(asdict(self))

    @property
    def believed(self) -> bool:
        """Whether rows may be erased by it."""
        return self.trial is None

    def looked(self, now: float) -> "ClockGuard":
        """The clock says `now`."""
        if abs(now - self.seen) > STEP_S:
            return ClockGuard(now, now)
        if self.trial is not None and now - self.trial >= TRIAL_S:
            return ClockGuard(now)
        return replace(self, seen=now) if abs(now - self.seen) >= _NOTED_S else self

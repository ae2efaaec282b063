"""The audit chain: every line holds the digest of the line before, so nothing can be taken out or changed unseen.

The newest digest stands for the whole history. Written down elsewhere from time to time, it also shows a log that was cut short.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from model_formats.core.types import digest_of

__all__ = ["GENESIS", "AuditLine", "follow", "verify"]

GENESIS = digest_of(b"")


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Who did what to what, and when (UTC seconds)."""

    number: int
    time: float
    who: str
    action: str
    what: str
    details: Mapping[str, str]
    previous: str

    @property
    def digest(self) -> str:
        """Over all fields, canonical JSON."""
        fields: dict[str, Any] = {
            "number": self.number,
            "time": repr(self.time),
            "who": self.who,
            "action": self.action,
            "what": self.what,
            "details": dict(self.details),
            "previous": self.previous,
        }
        return digest_of(rfc8785.dumps(fields))


def follow(
    number: int, previous: str, time: float, who: str, action: str, what: str, details: Mapping[str, str] | None = None
) -> AuditLine:
    """The line after line `number` (0: none yet) whose digest is `previous`."""
    return AuditLine(number + 1, time, who, action, what, dict(details or {}), previous)


def verify(lines: Iterable[tuple[AuditLine, str]]) -> int | None:
    """Walk (line, stored digest) from the first on. Returns None when whole, else the number of the first misfit."""
    number, previous = 0, GENESIS
    for line, stored in lines:
        if line.number != number + 1 or line.previous != previous or line.digest != stored:
            return number + 1
        number, previous = line.number, stored
    return None

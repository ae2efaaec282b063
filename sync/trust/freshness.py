"""What may be trusted as 'now', and how old metadata may be.

A spoke's clock may be wrong by years: a flat battery says 1970, a bad server 2036. Trusted time is `max(floor, wall clock +
correction)`. The floor rises only with what a trusted key has signed (never with the wall clock, so a clock that ran ahead
poisons nothing) and never falls, except when root replaces the timestamp key: then what the old key said about time is
forgotten together with the rest of what it signed. The correction comes from the hub's signed answer to a nonce of ours, so an
old answer cannot be replayed; it sets right a spoke whose clock is ahead.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Literal

from model_formats.core.document import Document
from model_formats.core.types import AwareDatetime, matching
from sync.core.types import Reason, SpokeId
from sync.trust.documents import Lane
from sync.trust.dsse import seal, unseal
from sync.trust.errors import MetadataRefused
from sync.trust.keys import Key, Signer

__all__ = [
    "EPOCH",
    "LIFETIME",
    "STALE_AFTER",
    "TimeAnswer",
    "answer_time",
    "correction",
    "is_stale",
    "lanes_allowed",
    "trusted_now",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LIFETIME: dict[Lane, timedelta] = {"online": timedelta(days=7), "relay": timedelta(days=30), "sideload": timedelta(days=90)}
"""For how long a timestamp of a lane is valid. After that a spoke takes no new directive; it goes on serving."""

STALE_AFTER: dict[Lane, timedelta] = {"online": timedelta(days=1), "relay": timedelta(days=7), "sideload": timedelta(days=30)}
"""After how long without news a spoke says in its status that it is stale."""

_ALLOWED: dict[Lane, frozenset[Lane]] = {
    "online": frozenset({"online"}),
    "relay": frozenset({"online", "relay"}),
    "sideload": frozenset({"online", "relay", "sideload"}),
}


class TimeAnswer(Document):
    """The hub's clock, in answer to one spoke's nonce."""

    max_bytes: ClassVar[int] = 4096

    kind: Literal["time-answer"] = "time-answer"
    schema_: Literal[1] = 1
    site: str
    spoke: str
    nonce: Annotated[str, matching("^[0-9a-f]{32}$")]
    time: AwareDatetime


def trusted_now(wall: datetime, floor: datetime, correction_s: float = 0.0) -> datetime:
    """The time to judge expiry by."""
    try:
        return max(floor, wall + timedelta(seconds=correction_s))
    # A wall clock near the end of representable time, plus the correction: the floor still holds.
    except OverflowError:
        return floor


def lanes_allowed(lane: Lane) -> frozenset[Lane]:
    """Timestamps of which lanes may arrive on this one: a stick's long-lived timestamp must not be replayed online."""
    return _ALLOWED[lane]


def is_stale(lane: Lane, issued: datetime, now: datetime) -> bool:
    """Whether news are overdue."""
    return now - issued > STALE_AFTER[lane]


def answer_time(spoke: SpokeId, nonce: str, now: datetime, signer: Signer) -> bytes:
    """The hub's half: a signed answer."""
    return seal(TimeAnswer(site=spoke.site, spoke=spoke.spoke, nonce=nonce, time=now), signer)


def correction(data: bytes, keys: tuple[Key, ...], me: SpokeId, nonce: str, wall: datetime, floor: datetime) -> float:
    """The spoke's half: seconds to add to the wall clock from now on. Raises EnvelopeRefused or MetadataRefused."""
    answer = unseal(data, keys, TimeAnswer, reason=Reason.METADATA_INVALID)
    if (answer.site, answer.spoke) != (me.site, me.spoke) or answer.nonce != nonce:
        raise MetadataRefused(Reason.WRONG_RECIPIENT, "the time answer is for another spoke or another question")
    # Even the hub's signature does not take back what a trusted key has already proved.
    if answer.time < floor:
        raise MetadataRefused(Reason.METADATA_ROLLBACK, f"the hub says {answer.time:%Y-%m-%d}, which is before {floor:%Y-%m-%d}")
    return (answer.time - wall).total_seconds()

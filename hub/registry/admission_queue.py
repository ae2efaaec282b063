"""Limits the blob downloads over HTTPS at one time, so that a fleet that comes back together does not overload its hub.

Each zone has a number of places. A caller that finds none gets a time to come back: by its position in the queue and the rate
at which places became free lately, with jitter. So ten thousand spokes ask about once each, in order of arrival.

A place is a lease: it ends with the answer, with the connection, or when nothing could be sent for `stall_s`. A waiting caller
holds no place, and is forgotten if it does not come back. Memory is bounded: `MAX_WAITING` callers in a zone.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from starlette.types import Message, Send

from hub.registry.errors import RegistryRefused
from sync.core.clock import Clock, SystemClock

__all__ = ["MAX_WAITING", "TooManyDownloads", "AdmissionQueue"]

MAX_WAITING = 20_000
LONGEST_WAIT_S = 300.0
_LATE_S = 60.0
"""So long after its time a caller that waits is forgotten."""
_NEWEST = 0.2
"""Weight of the last transfer in the mean of how long one takes."""
_random = secrets.SystemRandom()


class TooManyDownloads(RegistryRefused):
    """All places of the zone are taken. `retry_after`: seconds."""

    code = "registry_busy"
    http = 429
    oci_default = "TOOMANYREQUESTS"
    hint = "Spokes come again by themselves, when they are told to. `blob_places` in hub.toml allows more at once."

    def __init__(self, zone: str, limit: int, retry_after: int) -> None:
        super().__init__(f"{limit} blobs travel to zone {zone or '(none)'} already; come again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(slots=True)
class _Zone:
    taken: int = 0
    mean_s: float = 1.0
    turns: Iterator[int] = field(default_factory=itertools.count)
    waiting: OrderedDict[str, tuple[int, float]] = field(default_factory=OrderedDict)
    """Caller: its turn, and when it was told to come."""


class AdmissionQueue:
    """`limit` places in each zone. For one event loop."""

    def __init__(self, limit: int, *, stall_s: float = 300.0, clock: Clock | None = None) -> None:
        self._limit, self._stall_s, self._clock = limit, stall_s, clock or SystemClock()
        self._zones: dict[str, _Zone] = {}

    @contextlib.contextmanager
    def place(self, zone: str, caller: str) -> Iterator[None]:
        """A place while the block runs. Raises TooManyDownloads."""
        # Each zone has places of its own, so that a crowd in one does not shut out another.
        held, begin = self._zones.setdefault(zone, _Zone()), self._clock.monotonic()
        if held.taken >= self._limit:
            raise TooManyDownloads(zone, self._limit, self._come_again(held, caller, begin))
        held.waiting.pop(caller, None)
        held.taken += 1
        try:
            yield
        finally:
            held.taken -= 1
            # A running mean of how long a place is held: it follows the fleet's lines, and needs no history.
            held.mean_s += _NEWEST * (self._clock.monotonic() - begin - held.mean_s)

    def lively(self, send: Send) -> Send:
        """`send`, which raises TimeoutError when the other end took nothing for too long."""

        async def sending(message: Message) -> None:
            # A client that stops reading would otherwise hold its place for ever.
            async with asyncio.timeout(self._stall_s):
                await send(message)

        return sending

    def _come_again(self, zone: _Zone, caller: str, now: float) -> int:
        """Seconds, 1 at least."""
        # Callers that did not come back would make everybody behind them wait longer.
        while zone.waiting and next(iter(zone.waiting.values()))[1] + _LATE_S < now:
            zone.waiting.popitem(last=False)
        # Who comes again keeps the first turn, so nobody gains by asking often.
        turn = zone.waiting[caller][0] if caller in zone.waiting else next(zone.turns)
        first = next(iter(zone.waiting.values()), (turn, now))[0]
        before = min(turn - first, len(zone.waiting))
        # Jitter, so that callers with neighbouring turns do not come in the same second.
        wait = min(LONGEST_WAIT_S, zone.mean_s * (before / self._limit + 1)) * _random.uniform(0.75, 1.25)
        seconds = max(1, round(wait))
        if caller in zone.waiting or len(zone.waiting) < MAX_WAITING:
            zone.waiting[caller] = turn, now + seconds
        return seconds

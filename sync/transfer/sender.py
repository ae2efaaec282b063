"""The hub's half of the block transfer: many wants for one block cost one publish.

A block that is queued is not queued again, and one that was just published is not repeated: a spoke that asks was most likely
subscribed, so the block is on its way; if not, the spoke asks again. That pause doubles each time a block is published, so that
slow spokes or a slow broker are not flooded with repetitions. Memory is bounded: one block at a time, and one bitmap for each
blob that is asked for. Wants are not trusted: each is capped, and `may` decides what goes where.
"""

import contextlib
import logging
import math
import os
import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from model_formats.core.document import DocumentRefused
from model_formats.core.errors import HubError
from model_formats.core.types import DIGEST_PATTERN
from sync.bus.bus import Bus, BusDown, Message, Subscription
from sync.core.clock import Clock, SystemClock
from sync.protocol import topics
from sync.protocol.messages import Want
from sync.store import BLOCK_SIZE
from sync.transfer.bitmap import decode
from sync.transfer.rate_limit import RateLimit, TokenBucket, Unlimited

__all__ = ["BlobSender", "Blobs", "SenderStats"]

GRACE_S = 1.0
"""A block that was published less than so many seconds ago is taken to be on its way to those who ask for it now."""
LONGEST_GRACE_S = 8.0
MAX_CREDIT = 128
"""Blocks that one want may ask for, whatever it says: 16 MiB."""
MAX_STREAMS = 256
"""Blobs (per zone) that are served at once; wants for more are dropped and asked again."""
_INBOX = 20_000
_IDLE_S = 5.0
_NAP_S = 1.0
"""Longest wait for a want while nothing is asked for: `stop` is seen so late."""
_SMALL_BYTES = 16 * BLOCK_SIZE
"""A blob of one window is not worth a pause."""
_MANY = 64
_NAMES = 4096
"""Spokes of a ring that are told apart while it gathers."""
_GATHERINGS = 5
"""A ring that goes on growing is waited for so many times `gather_s` at most."""
_MOMENT_S = 5.0
"""So long ago a spoke asked for something else that is expected to ask for this as well."""
_AFTER_NEW_S = 0.25
"""So long after the last block that is new to all, what some have missed is sent again: to all of those in one go."""
_LATELY_S = 60.0
"""So long after its last want a spoke counts as one of those that begin together."""

log = logging.getLogger(__name__)
_DIGEST = re.compile(DIGEST_PATTERN)


class Blobs(Protocol):
    """Where blobs are (`model_formats.package.image_layout.BlobReader` has this shape)."""

    def has(self, digest: str) -> bool:
        """Whether the blob is here, whole."""

    def path(self, digest: str) -> Path:
        """Its file."""


@dataclass(slots=True)
class SenderStats:
    """Counts since the start, for metrics and tests."""

    wants: int = 0
    refused: int = 0
    blocks: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Stream:
    """One blob on its way into one zone."""

    zone: str
    digest: str
    fd: int
    size: int
    waiting: dict[int, None] = field(default_factory=dict)
    sent: dict[int, tuple[float, int]] = field(default_factory=dict)
    used: float = 0.0
    opened: float = 0.0
    not_before: float = 0.0
    names: set[str] = field(default_factory=set)
    again: dict[int, None] = field(default_factory=dict)
    """Blocks that were published before and are missed by some."""
    last_new: float = -math.inf
    lag: float = 0.0
    """The longest a ring was seen to take from the publishing of a block to its arrival, seconds."""

    @property
    def blocks(self) -> int:
        return -(-self.size // BLOCK_SIZE)


class BlobSender:
    """Answers the wants of spokes, with one thread of its own."""

    def __init__(
        self,
        bus: Bus,
        blobs: Blobs,
        *,
        may: Callable[[str, str], bool] | None = None,
        bytes_per_second: float | None = None,
        group: str | None = "hub",
        grace: float = GRACE_S,
        gather_s: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        """`may(zone, digest)` says whether a blob may go to a zone; None: all that `blobs` has (for tests and relays).

        `gather_s`: seconds between the first want of the last newcomer and the first block, when several spokes of the zone have
        asked for something lately. A ring that begins together needs a little, since over a fast line the first of them would
        have the whole blob before the last has subscribed; a spoke that is alone does not wait.
        `group`: share the wants with other workers of that name (None: hear them all).
        """
        self._bus, self._blobs, self._may = bus, blobs, may
        self._grace, self._gather_s, self._clock = grace, gather_s, clock or SystemClock()
        self._pace: RateLimit = TokenBucket(bytes_per_second, clock=self._clock) if bytes_per_second else Unlimited()
        # A shared subscription: the broker deals each want to one of the workers, so that none is answered twice.
        self._filter = (f"$share/{group}/" if group else "") + topics.want("+", "+")
        self._inbox: queue.Queue[Message | None] = queue.Queue(_INBOX)
        self._streams: dict[tuple[str, str], _Stream] = {}
        # By zone: who asked for anything lately, and when. It tells a spoke that is alone from a ring.
        self._company: dict[str, dict[str, float]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self.stats = SenderStats()

    def start(self) -> None:
        """Subscribe to wants and answer them until `stop`, on a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="blob-sender", daemon=True)
        self._thread.start()
        self.subscribe()

    def subscribe(self) -> None:
        """Hear wants. Whoever has no thread started calls `turn` to answer them."""
        self._subscription = self._bus.subscribe(self._filter, self._heard, qos=0)

    def stop(self) -> None:
        """Stop within a second."""
        if self._subscription is not None:
            self._subscription.cancel()
        self._stopping.set()
        with contextlib.suppress(queue.Full):
            self._inbox.put_nowait(None)
        if self._thread is not None:
            self._thread.join()
        for stream in self._streams.values():
            os.close(stream.fd)
        self._streams.clear()

    # ---- on the bus's thread ------------------------------------------------------------------------------------------------

    def _heard(self, message: Message) -> None:
        with contextlib.suppress(queue.Full):  # it will be asked again
            self._inbox.put_nowait(message)

    # ---- on the sender's own thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.turn()

    def turn(self) -> bool:
        """Take the wants that are here, then send a block of each blob that may begin. Returns whether there was one to send."""
        waiting = [stream for stream in self._streams.values() if stream.waiting or stream.again]
        ready = [stream for stream in waiting if self._may_begin(stream)]
        # With blocks to send, look at wants without waiting; before a ring has gathered, look often; otherwise sleep.
        self._listen(wait=0.0 if ready else 0.02 if waiting else _NAP_S)
        # One block of each blob in turn, so that a small blob does not wait behind a large one.
        for stream in ready:
            self._send_one(stream)
        self._forget_idle()
        return bool(ready)

    def _listen(self, wait: float) -> None:
        """Take all wants that are here; with nothing to send, wait for one."""
        try:
            message = self._inbox.get(timeout=wait) if wait else self._inbox.get_nowait()
            while message is not None:
                self._wanted(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _wanted(self, message: Message) -> None:
        self.stats.wants += 1
        try:
            want = Want.parse(message.payload)
            stream = self._stream(message.topic)
            if stream is None:
                self.stats.refused += 1
                return
            # A want is not trusted: never more blocks than the blob has, nor more than MAX_CREDIT.
            blocks = decode(want.start, want.missing, blocks=stream.blocks, limit=min(want.credit, MAX_CREDIT))
        except (DocumentRefused, ValueError, HubError, OSError):  # the last two: its bytes cannot be had now; it is asked again
            self.stats.refused += 1
            return
        now = stream.used = self._clock.monotonic()
        self._note_company(stream.zone, f"{want.site}/{want.spoke}", now)
        self._gather(stream, f"{want.site}/{want.spoke}", now)
        for block in blocks:
            # What nobody has had yet comes before what only some have missed.
            if block not in stream.sent:
                stream.waiting.setdefault(block)
            elif self._is_missed(stream, block, now):
                stream.again.setdefault(block)

    def _is_missed(self, stream: _Stream, block: int, now: float) -> bool:
        """Whether a block that was published is asked for so late that it will not come any more.

        In company the broker has many to serve, and they lag: what is asked for within the grace tells by how much: twice that
        is the grace of the ring.
        """
        last, times = stream.sent[block]
        # The grace doubles with each repetition of a block, so that a spoke that cannot keep up is not sent the same block all
        # the time.
        age, grace = now - last, min(max(self._grace, 2 * stream.lag) * 2 ** (times - 1), LONGEST_GRACE_S)
        # The block is still on its way to this spoke: its age shows how far the ring is behind.
        if age < grace and len(self._company.get(stream.zone, ())) > 1:
            stream.lag = max(stream.lag, age)
        return bool(age >= grace)

    def _note_company(self, zone: str, who: str, now: float) -> None:
        """The oldest first, so that what is old is found at the front; no more than tells two from many."""
        asked = self._company.setdefault(zone, {})
        # Removed and put in again, so that the order of the dictionary is the order of time.
        asked.pop(who, None)
        if len(asked) < _MANY:
            asked[who] = now

    def _gather(self, stream: _Stream, who: str, now: float) -> None:
        """As long as others join, wait for more."""
        if not stream.sent and who not in stream.names and len(stream.names) < _NAMES:
            stream.names.add(who)
            stream.not_before = min(now + self._gather_s, stream.opened + _GATHERINGS * self._gather_s)

    def _may_begin(self, stream: _Stream) -> bool:
        """Whether to send now: at once to one that is alone; in company a ring gathers first, and what some missed comes last."""
        now, company = self._clock.monotonic(), self._company.get(stream.zone, {})
        # A spoke that is alone gains nothing from waiting, and a small blob costs less than the pause.
        if len(company) < 2 or stream.size <= _SMALL_BYTES:
            return True
        if not stream.waiting:
            # Repetitions wait until all that is new has gone out: by then most who miss something have said so, and one publish
            # serves them.
            return now >= stream.last_new + _AFTER_NEW_S
        return bool(stream.sent) or (now >= stream.not_before and not self._more_may_come(stream, company, now))

    def _more_may_come(self, stream: _Stream, company: dict[str, float], now: float) -> bool:
        """Whether somebody asked for something a moment ago, and may be about to ask for this: the index comes first, for all."""
        if now >= stream.opened + _GATHERINGS * self._gather_s:
            return False
        return any(now - asked < _MOMENT_S and who not in stream.names for who, asked in company.items())

    def _stream(self, topic: str) -> _Stream | None:
        parts = topic.split("/")
        zone, digest = parts[3], parts[5]
        found = self._streams.get((zone, digest))
        if found is not None:
            return found
        if len(self._streams) >= MAX_STREAMS or not _DIGEST.match(digest) or not self._blobs.has(digest):
            return None
        # Not answered at all: a spoke in another zone cannot tell a forbidden blob from one that is not here.
        if self._may is not None and not self._may(zone, digest):
            return None
        # Kept open while it is asked for: a block is then one `pread`.
        fd = os.open(self._blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(fd).st_size
        now = self._clock.monotonic()
        found = self._streams[zone, digest] = _Stream(zone, digest, fd, size, opened=now)
        return found

    def _send_one(self, stream: _Stream) -> None:
        wait = self._pace.wait()
        # In short pieces, so that wants are heard and `stop` is seen while the rate limit holds.
        if wait > 0 and self._stopping.wait(min(wait, 0.25)):
            return
        if wait > 0.25:
            return
        queue = stream.waiting or stream.again
        block = next(iter(queue))
        data = os.pread(stream.fd, BLOCK_SIZE, block * BLOCK_SIZE)
        try:
            self._bus.publish(Message(topics.block(stream.zone, stream.digest, block * BLOCK_SIZE), data, qos=0))
        except BusDown:
            stream.waiting.clear()  # whoever still wants it asks again
            stream.again.clear()
            self._stopping.wait(0.1)
            return
        stream.used = self._clock.monotonic()
        if queue is stream.waiting:
            stream.last_new = stream.used
        del queue[block]
        stream.sent[block] = (stream.used, stream.sent.get(block, (0.0, 0))[1] + 1)
        self._pace.spend(len(data))
        self.stats.blocks += 1
        self.stats.bytes += len(data)

    def _forget_idle(self) -> None:
        now = self._clock.monotonic()
        for key, stream in list(self._streams.items()):
            if not stream.waiting and not stream.again and now - stream.used > _IDLE_S:
                os.close(stream.fd)
                del self._streams[key]
        for asked in self._company.values():
            while asked and now - next(iter(asked.values())) > _LATELY_S:
                del asked[next(iter(asked))]

"""The spoke's half of the block transfer: asks by bitmap, checks each block on arrival, writes it in place, resumes.

Bounded memory: at most `_INBOX` blocks wait between the bus's thread and the disk; more are dropped and asked for again.
Blocks are sent with QoS 0: the next bitmap acknowledges them.
"""

import hashlib
import math
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model_formats.core.document import DocumentRefused
from sync.bus.bus import Bus, BusDown, Message
from sync.core.clock import Clock, SystemClock
from sync.core.types import SpokeId
from sync.protocol import topics
from sync.protocol.messages import Want
from sync.store import BLOCK_SIZE, BlobWriter, Store
from sync.transfer.bitmap import decode, encode
from sync.transfer.errors import TransferCancelled, TransferStalled
from sync.transfer.rate_limit import RateLimit, Unlimited
from sync.transfer.window import InFlightWindow

__all__ = ["BlockReceiver", "Patience", "Progress"]

Progress = Callable[[int, int], None]
"""Called on the receiving thread with (bytes held, bytes in all)."""

_INBOX = 192
_CALM = 0.98
"""A spoke that had to ask again asks later the next time (it may be the slow one); each new block calms it by this factor."""
_PROBE_BLOCKS = 4
"""A blob that needs more than one want is asked for by so many blocks first: there may be a flow of it already, to join."""
_LISTEN_S = 0.05
"""What flows is heard before the answer to that; so long an answer is waited for, seconds."""
_BRISK_S = 0.03
"""Wants that follow each other faster, seconds, are too small for the line, where nobody holds it back."""
_BATCH_BLOCKS = 8
"""Blocks that are checked and written before the line is looked after again: 1 MiB."""
_TICK_S = 0.1
"""Longest wait before a cancel is seen, seconds."""
_COMPANY_S = 5.0
"""So long after the last want of another spoke we are not alone, seconds."""
_TURN_S = 0.04
"""Longest time to let another ask first, seconds."""
MAX_HEEDED = 64
"""Blocks that are left to one want of another spoke."""
_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: `quiet` before asking again (doubling to `longest`), `stalled` without news on a good line before giving up.

    `quiet` should be longer than the sender's `GRACE_S`, or the second question comes too early.
    """

    quiet: float = 1.25
    longest: float = 30.0
    stalled: float = 300.0


class BlockReceiver:
    """Receives blobs over the bus into a store, one at a time per call."""

    def __init__(
        self,
        bus: Bus,
        zone: str,
        me: SpokeId,
        store: Store,
        *,
        patience: Patience = Patience(),
        pace: RateLimit | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._bus, self._zone, self._me, self._store = bus, zone, me, store
        self._patience, self._pace, self._clock = patience, pace or Unlimited(), clock or SystemClock()
        self._paced = not isinstance(self._pace, Unlimited)

    def receive(
        self,
        digest: str,
        size: int,
        hashes: Sequence[bytes] | None = None,
        *,
        cancel: threading.Event | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Bring one blob into the store, going on from what is there; returns the bytes that were received now.

        `hashes`: SHA-256 of each 128 KiB block from the signed block list; a block that does not match is thrown away. None for
        the files that come before the list: then only the whole is checked.

        Raises TransferCancelled (within a second of `cancel`), TransferStalled, PackageTampered (the whole is not what its digest
        says; all of it is thrown away), DiskFull and DiskFailed. All but PackageTampered keep what has arrived.
        """
        if self._store.has(digest):
            return 0
        with self._store.writer(digest, size, BLOCK_SIZE) as writer:
            if hashes is not None and len(hashes) != writer.blocks:
                raise ValueError(f"{digest} has {writer.blocks} blocks, its block list {len(hashes)}")
            transfer = _Transfer(self, writer, hashes, cancel or threading.Event(), progress)
            before = writer.received
            subscription = self._bus.subscribe(topics.blocks_of(self._zone, digest), transfer.heard, qos=0)
            try:
                transfer.run()
            finally:
                subscription.cancel()
            received = writer.received - before
            writer.commit()
        return received


class _Transfer:
    """One blob on its way."""

    def __init__(
        self,
        owner: BlockReceiver,
        writer: BlobWriter,
        hashes: Sequence[bytes] | None,
        cancel: threading.Event,
        progress: Progress | None,
    ) -> None:
        self._owner, self._writer, self._hashes = owner, writer, hashes
        self._cancel, self._progress = cancel, progress
        # Between the bus's thread, which must not wait for a disk, and this one, which checks and writes.
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._window = InFlightWindow(writer.missing(), writer.blocks)
        self._listen_until: float | None = None
        # A small blob is asked for at once; listening first would only delay it.
        self._listens = len(self._window.missing) > self._window.size
        self._was_up = owner._bus.connected
        self._quiet = owner._patience.quiet
        self._last = self._asked_again = owner._clock.monotonic()
        self._held_back = False
        self._asked = -math.inf
        self._company_until = 0.0
        self._turn_at: float | None = None
        self._damaged = 0

    def heard(self, message: Message) -> None:
        """On the bus's thread: take it if there is room. Wants come here too, our own and those of others."""
        # Dropping is safe: the bitmap still shows the block as missing.
        if self._inbox.qsize() < _INBOX:  # else it will be asked for again
            self._inbox.put(message)

    def run(self) -> None:
        """Until nothing is missing."""
        self._tell()
        while not self._window.done:
            if self._cancel.is_set():
                raise TransferCancelled(
                    f"{self._writer.digest}: cancelled at {self._writer.received} of {self._writer.size} bytes"
                )
            self._watch_the_line()
            self._ask()
            self._take()

    def _watch_the_line(self) -> None:
        now, up = self._owner._clock.monotonic(), self._owner._bus.connected
        self._held_back = self._owner._pace.wait() > 0
        # What was on its way when the line broke was sent with QoS 0, and is lost.
        if up and not self._was_up:
            self._window.ask_again()
            self._quiet = self._owner._patience.quiet
        # Time without a line, or held back by the site's own limits, is no sign of a stalled transfer.
        if not up or not self._was_up or self._held_back:
            self._last = self._asked_again = now
        self._was_up = up
        if now - self._last > self._owner._patience.stalled:
            raise TransferStalled(
                f"{self._writer.digest}: nothing new for {now - self._last:.0f} s at {self._writer.received} of "
                f"{self._writer.size} bytes; {self._damaged} damaged blocks were thrown away"
            )
        # Only with an empty inbox: blocks that wait there are no silence of the line.
        if now - max(self._last, self._asked_again) > self._quiet and self._inbox.empty():
            self._window.ask_again()
            self._asked_again = now
            # Jitter, so that spokes that lost the same blocks do not ask in step for ever.
            self._quiet = min(self._quiet * _random.uniform(1.5, 2.5), self._owner._patience.longest)

    def _ask(self) -> None:
        if not self._was_up or self._held_back:
            return
        if not self._window.wants_more:
            self._turn_at = None
            return
        now = self._owner._clock.monotonic()
        if not self._listening(now) and self._my_turn(now):
            # Half a window arrived within `_BRISK_S` seconds: the line is faster than the window.
            if now - self._asked < _BRISK_S and not self._owner._paced:
                self._window.grow()
            self._want(self._window.due(), now)

    def _listening(self, now: float) -> bool:
        """Whether to ask for little, once, and listen: what comes unasked shows where the others are."""
        if not self._listens:
            return False
        if self._listen_until is None:
            self._listen_until = now + _LISTEN_S
            self._want(self._window.due(_PROBE_BLOCKS), now)
        self._listens = now < self._listen_until
        return self._listens

    def _want(self, blocks: list[int], now: float) -> None:
        self._turn_at = None
        if not blocks:
            return
        self._asked = now
        start, missing = encode(blocks)
        me = self._owner._me
        want = Want(site=me.site, spoke=me.spoke, start=start, missing=missing, credit=len(blocks))
        topic = topics.want(self._owner._zone, self._writer.digest)
        try:
            self._owner._bus.publish(Message(topic, want.canonical(), qos=0))
        except BusDown:
            self._was_up = False  # the next connection asks again

    def _take(self) -> None:
        """What has come, in small batches, so that threads are switched and the line is looked after less often."""
        try:
            # Something is due in some milliseconds: do not sleep through it.
            soon = self._listens or self._turn_at is not None
            self._receive(self._inbox.get(timeout=_TURN_S / 8 if soon else _TICK_S))
            for _ in range(_BATCH_BLOCKS - 1):
                self._receive(self._inbox.get_nowait())
        except queue.Empty:
            pass

    def _receive(self, message: Message) -> None:
        if message.topic.endswith("/want"):
            self._heed(message.payload)
            return
        index = self._checked(message)
        if index is not None:
            self._writer.write(index, message.payload)
            self._owner._pace.spend(len(message.payload))
            self._listens &= not self._window.arrived(index)
            self._last = self._owner._clock.monotonic()
            # Back slowly: one block that came does not make a slow line fast.
            self._quiet = max(self._owner._patience.quiet, self._quiet * _CALM)
            self._tell()

    def _heed(self, payload: bytes) -> None:
        """What another spoke asks for comes to us too: let it ask, and keep still a random moment so that one of us is first."""
        try:
            want = Want.parse(payload)
            # The broker sends us our own wants too.
            if (want.site, want.spoke) == (self._owner._me.site, self._owner._me.spoke):
                return
            blocks = decode(want.start, want.missing, blocks=self._writer.blocks, limit=min(want.credit, MAX_HEEDED))
        except (DocumentRefused, ValueError):
            return
        self._window.asked_by_another(blocks)
        self._company_until = self._owner._clock.monotonic() + _COMPANY_S

    def _my_turn(self, now: float) -> bool:
        """Whether to ask now: at once when alone; in company after a random moment in which another may be faster."""
        if now > self._company_until:
            return True
        if self._turn_at is None:
            self._turn_at = now + _random.uniform(0, _TURN_S)
        return now >= self._turn_at

    def _checked(self, message: Message) -> int | None:
        """Which block this is: 1. its place, 2. its length, 3. its hash. What fails is thrown away, and asked for again."""
        offset = message.topic.rpartition("/")[2]
        # 1.
        if not (offset.isascii() and offset.isdigit() and len(offset) < 20) or int(offset) % BLOCK_SIZE:
            return None
        index = int(offset) // BLOCK_SIZE
        if index not in self._window.missing:
            return None
        # 2.
        if len(message.payload) != min(BLOCK_SIZE, self._writer.size - int(offset)):
            self._damaged += 1
            return None
        # 3.
        # Before a byte is written, so that a block forged by another subscriber never touches the file.
        if self._hashes is not None and hashlib.sha256(message.payload).digest() != self._hashes[index]:
            self._damaged += 1
            return None
        return index

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._writer.received, self._writer.size)

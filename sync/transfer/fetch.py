"""Blobs over HTTPS by Range (RFC 9110, section 14), into the same partial files as the block transfer: either transport goes on
where the other stopped.
"""

import contextlib
import hashlib
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import httpx

from sync.core.clock import Clock, SystemClock
from sync.core.retry import retrying
from sync.store import BLOCK_SIZE, BlobWriter, Store
from sync.transfer.errors import BlobGone, TransferCancelled, TransferStalled
from sync.transfer.rate_limit import RateLimit, Unlimited

__all__ = ["fetch_blob"]

_GONE = frozenset({401, 403, 404, 410})
_LONG_S = 10.0
"""A pause longer than this, seconds, is not waited for with an open connection."""


_BUSY = frozenset({429, 503})
_LONGEST_WAIT_S = 600.0
"""Longest time that a busy server may send us away for, seconds."""
_PATIENCE_S = 3600.0
"""So long a server may be busy, seconds, before this try of the transfer is given up."""
_random = secrets.SystemRandom()


class _Interrupted(Exception):
    """The line broke, or the server is at a loss: worth another try."""


class _Busy(Exception):
    """No place now; come again in `seconds`. It costs no try: we are one of many, and our turn comes."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the hub has no place now, for {seconds:.0f} s")
        self.seconds = seconds


def fetch_blob(
    client: httpx.Client,
    url: str,
    digest: str,
    size: int,
    store: Store,
    *,
    hashes: Sequence[bytes] | None = None,
    cancel: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
    pace: RateLimit | None = None,
    tries: int = 5,
    clock: Clock | None = None,
) -> int:
    """Bring one blob into the store, going on from what is there; returns the bytes that were received now.

    `url`: the blob's own address (`/v2/<name>/blobs/<digest>`). `hashes`: as in the block transfer; a block that does not match
    is thrown away and asked for again. `tries`: in a row without a new block.

    Raises TransferCancelled, TransferStalled (after `tries`), BlobGone (not there, or not for us: not tried again),
    PackageTampered, DiskFull, DiskFailed. All but PackageTampered keep what has arrived.
    """
    if store.has(digest):
        return 0
    with store.writer(digest, size, BLOCK_SIZE) as writer:
        fetch = _Fetch(
            client, url, writer, hashes, cancel or threading.Event(), progress, pace or Unlimited(), clock or SystemClock()
        )
        before = writer.received
        fetch.run(tries)
        received = writer.received - before
        writer.commit()
    return received


class _Fetch:
    """One blob on its way."""

    def __init__(
        self,
        client: httpx.Client,
        url: str,
        writer: BlobWriter,
        hashes: Sequence[bytes] | None,
        cancel: threading.Event,
        progress: Callable[[int, int], None] | None,
        pace: RateLimit,
        clock: Clock,
    ) -> None:
        self._client, self._url, self._writer, self._hashes = client, url, writer, hashes
        self._cancel, self._progress, self._pace, self._clock = cancel, progress, pace, clock
        self._served = clock.monotonic()

    def run(self, tries: int) -> None:
        """Until nothing is missing; each try that brings something earns the next ones."""
        while missing := self._writer.missing():
            held = self._writer.received

            # Made anew for each run of missing blocks: progress earns new tries.
            ask = retrying(on=(_Interrupted,), tries=tries, seconds=600, clock=self._clock)(self._ask)
            try:
                ask(_first_run(missing), held)
            except _Busy as e:
                self._come_again(e)
                continue
            except _Interrupted as e:
                raise TransferStalled(f"{self._url}: {e} at {self._writer.received} of {self._writer.size} bytes") from e
            # Bytes came, and none was right. To ask the same server again would bring the same.
            if self._writer.received == held and self._writer.missing() == missing:
                raise TransferStalled(f"{self._url}: damaged blocks only, at {held} of {self._writer.size} bytes")

    def _come_again(self, busy: _Busy) -> None:
        """Wait as we were told, and a random bit more."""
        if self._clock.monotonic() - self._served > _PATIENCE_S:
            raise TransferStalled(f"{self._url}: {busy} at {self._writer.received} of {self._writer.size} bytes") from busy
        if self._cancel.wait(busy.seconds * _random.uniform(1.0, 1.25)):
            raise self._cancelled()

    def _ask(self, run: tuple[int, int], held: int) -> None:
        if self._cancel.is_set():
            raise self._cancelled()
        self._hold()
        start, end = run[0] * BLOCK_SIZE, min((run[1] + 1) * BLOCK_SIZE, self._writer.size) - 1
        try:
            self._range(start, end)
        except _Interrupted:
            if self._cancel.is_set():
                raise self._cancelled() from None
            if self._writer.received == held:
                raise

    def _hold(self) -> None:
        while (wait := self._pace.wait()) > 0:
            if self._cancel.wait(min(wait, 1.0)):
                raise self._cancelled()

    def _cancelled(self) -> TransferCancelled:
        return TransferCancelled(f"{self._url}: cancelled at {self._writer.received} of {self._writer.size} bytes")

    def _range(self, start: int, end: int) -> None:
        # `identity`: a compressed range could not be cut into blocks, and could expand without bound.
        headers = {"range": f"bytes={start}-{end}", "accept-encoding": "identity"}
        try:
            with self._client.stream("GET", self._url, headers=headers) as answer, _cut_on(self._cancel, answer):
                begin = self._check(answer, start)
                self._served = self._clock.monotonic()
                self._keep(answer, begin, end)
        except httpx.TransportError as e:
            raise _Interrupted(str(e) or type(e).__name__) from e

    def _check(self, answer: httpx.Response, start: int) -> int:
        """Where the body begins: at `start`, or at 0 from a server that knows no ranges."""
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise _Interrupted(f"an encoding that was not asked for: {answer.headers['content-encoding']!r}")
        if answer.status_code in _GONE:
            raise BlobGone(f"{self._url}: the hub answers {answer.status_code}")
        if answer.status_code == 206:
            if not answer.headers.get("content-range", "").startswith(f"bytes {start}-"):
                raise _Interrupted(f"another range than asked for: {answer.headers.get('content-range')!r}")
            return start
        # A proxy or a server without ranges sends the whole; blocks that are here already are skipped.
        if answer.status_code == 200:
            return 0
        if answer.status_code in _BUSY and (seconds := _seconds(answer.headers.get("retry-after", ""))) is not None:
            raise _Busy(seconds)
        raise _Interrupted(f"status {answer.status_code}")

    def _keep(self, answer: httpx.Response, begin: int, end: int) -> None:
        """Cut the body into blocks, check them, and keep them."""
        position = begin
        for data in _blocks(answer):
            if self._cancel.is_set():
                raise self._cancelled()
            # A server may send more than was asked for; nothing beyond the blob is written.
            block = data[: self._writer.size - position]
            self._keep_block(position // BLOCK_SIZE, block)
            position += len(block)
            if position > end:
                break
        if position <= end:
            raise _Interrupted(f"the answer ended {end + 1 - position} bytes early")

    def _keep_block(self, index: int, block: bytes) -> None:
        if len(block) != min(BLOCK_SIZE, self._writer.size - index * BLOCK_SIZE):
            raise _Interrupted("the answer ended within a block")
        if self._hashes is not None and hashlib.sha256(block).digest() != self._hashes[index]:
            return
        self._writer.write(index, block)
        self._pace.spend(len(block))
        if self._writer.received < self._writer.size:
            # A long pause would hold a place at the hub without using it: give it back and come again.
            if self._pace.wait() > _LONG_S:
                raise _Interrupted("held back")
            self._hold()
        if self._progress is not None:
            self._progress(self._writer.received, self._writer.size)


def _blocks(answer: httpx.Response) -> Iterator[bytes]:
    """The body in blocks, as it came: `iter_bytes` copies each piece several times."""
    held: list[bytes] = []
    missing = BLOCK_SIZE
    for data in (answer.content,) if answer.is_stream_consumed else answer.iter_raw():  # one from memory is whole already
        start = 0
        while len(data) - start >= missing:
            yield b"".join((*held, data[start : start + missing]))
            start, missing = start + missing, BLOCK_SIZE
            held.clear()
        held.append(data[start:] if start else data)
        missing -= len(data) - start
    if missing < BLOCK_SIZE:
        yield b"".join(held)


@contextlib.contextmanager
def _cut_on(cancel: threading.Event, answer: httpx.Response) -> Iterator[None]:
    """Break the connection when `cancel` is set, so that a read that waits for a dead line comes back."""
    wire = answer.extensions["network_stream"].get_extra_info("socket") if "network_stream" in answer.extensions else None
    if not isinstance(wire, socket.socket):  # an answer from memory
        yield
        return
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(cancel, over, wire), name="fetch-cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _watch(cancel: threading.Event, over: threading.Event, wire: socket.socket) -> None:
    while not over.wait(0.2):
        if cancel.is_set():
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            return


def _seconds(retry_after: str) -> float | None:
    """RFC 9110, section 10.2.3; of its two forms, seconds: a date says nothing to a spoke whose clock is wrong."""
    return min(float(retry_after), _LONGEST_WAIT_S) if retry_after.isascii() and retry_after.isdigit() else None


def _first_run(missing: Sequence[int]) -> tuple[int, int]:
    """First and last block of the first stretch without a gap."""
    last = missing[0]
    for block in missing[1:]:
        if block != last + 1:
            break
        last = block
    return missing[0], last

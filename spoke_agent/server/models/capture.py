"""Rows, answers and labels on their way into the local store, off the hot path.

What was answered together costs one append to a bounded ring; a writer thread joins what gathered and stores it encrypted
(`spoke_agent.data.store`).
When more comes than the budget allows, batches are left out and counted: capture never slows an answer.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np

from model_formats.core.runtime import Array
from spoke_agent.data.rows import RowBatch as StoredRows
from spoke_agent.server.models.version import Answered, Version

__all__ = ["Capture", "Labelled", "RowStore"]

_PAUSE_S = 1.0
"""Longest that rows wait, unless `_STORED_ROWS` or `_WAITING_BYTES` gather sooner: to store rows takes the processor for some
milliseconds, however few they are, and callers of that time see it.
"""
_MOST_WAITING = 2048
"""Rows in the ring, so that a burst cannot grow the process."""
_STORED_ROWS = 512
_WAITING_BYTES = 4 << 20

Labelled = Callable[[bool | Exception], None]
"""Called on the writer thread: whether the request was known, or why the label was refused."""


class RowStore(Protocol):
    """What capture needs of `DataStore`."""

    def append(self, batch: StoredRows) -> int:
        """Store rows."""

    def label(self, request_id: str, label: float | Sequence[float]) -> bool:
        """Set the label of a request; False when it is not known (yet)."""

    def close(self) -> None:
        """Let go of the file."""


class _Captured(NamedTuple):
    version: Version
    time: float
    answered: Answered


class Capture:
    """`watch` is a `Watcher` for champions. The store is opened on the writer thread: when `open` asks for it, else at the first
    row or label.
    """

    def __init__(
        self, open_store: Callable[[], RowStore], *, rows_s: float, burst: int, on_fault: Callable[[Exception], None]
    ) -> None:
        self.stored_rows = 0
        self.dropped_rows = 0
        self._open_store = open_store
        self._on_fault = on_fault
        self._store: RowStore | None = None
        self._rate, self._burst, self._tokens = rows_s, float(burst), float(burst)
        self._refilled = time.monotonic()
        self._offered = 0
        """Rows put into the ring; written by the loop alone."""
        self._taken = 0
        """Rows taken out of it; written by the writer thread alone. Their difference is what waits, without a lock."""
        self._waiting_bytes = 0
        """Of inputs, since the writer was last woken for them."""
        self._ring: deque[_Captured] = deque()
        self._labels: deque[tuple[str, list[float], Labelled]] = deque()
        self._wake = threading.Event()
        self._asked: threading.Event | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Open the store and wait for it: it takes tens of milliseconds of the process, which no caller should wait for.

        A store that does not open is a fault like any other: told, and tried again with the first row.
        """
        self._asked = asked = threading.Event()
        self._wake.set()
        asked.wait()

    def watch(self, version: Version, answered: Answered) -> None:
        """Keep rows, when the budget allows. On the loop; about a microsecond."""
        rows = answered.rows
        if self._offered - self._taken + rows > _MOST_WAITING or (self._tokens < rows and not self._refill(rows)):
            self.dropped_rows += rows
            return
        self._tokens -= rows
        self._offered += rows
        self._ring.append(_Captured(version, time.time(), answered))
        for array in answered.inputs.values():
            self._waiting_bytes += array.nbytes
        if self._waiting_bytes > _WAITING_BYTES or self._offered - self._taken >= _STORED_ROWS:
            self._waiting_bytes = 0
            self.flush()

    def label(self, request_id: str, labels: list[float], done: Labelled) -> None:
        """Hand a label to the writer thread, behind the rows captured so far."""
        self._labels.append((request_id, labels, done))
        self.flush()

    def flush(self) -> None:
        """Ask the writer to write now."""
        self._wake.set()

    def close(self) -> None:
        """Write what is there, then end (waits for it)."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=10)

    def _refill(self, rows: int) -> bool:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._rate)
        self._refilled = now
        return self._tokens >= rows

    # ---- on the writer thread

    def _work(self) -> None:
        while not self._stopped:
            self._wake.wait(_PAUSE_S)
            self._wake.clear()
            if self._asked is not None:
                self._open_asked(self._asked)
            self._write()
        self._write()
        if self._store is not None:
            self._store.close()

    def _open_asked(self, asked: threading.Event) -> None:
        self._asked = None
        try:
            self._opened()
        except Exception as e:  # noqa: BLE001 - as in `_write`
            self._on_fault(e)
        finally:
            asked.set()

    def _write(self) -> None:
        try:
            labels = [self._labels.popleft() for _ in range(len(self._labels))]
            captured = [self._ring.popleft() for _ in range(len(self._ring))]
            self._taken += sum(c.answered.rows for c in captured)
            for _, group in groupby(captured, _kind):
                for portion in _portions(group):
                    self._append(portion)
            for request_id, values, done in labels:
                self._label(request_id, values, done)
        except Exception as e:  # noqa: BLE001 - a full disk or a lost key must not end serving; it is counted and told
            self._on_fault(e)

    def _append(self, group: list[_Captured]) -> None:
        rows = sum(c.answered.rows for c in group)
        try:
            self._opened().append(_joined(group))
            self.stored_rows += rows
        except Exception:
            self.dropped_rows += rows
            raise

    def _label(self, request_id: str, values: list[float], done: Labelled) -> None:
        try:
            done(self._opened().label(request_id, values if len(values) > 1 else values[0]))
        except Exception as e:  # noqa: BLE001 - handed to whoever sent the label
            done(e)

    def _opened(self) -> RowStore:
        if self._store is None:
            self._store = self._open_store()
        return self._store


def _kind(captured: _Captured) -> object:
    """Equal for what is stored together."""
    version = captured.version
    return version.index, captured.answered.adapter_name, version.signature.inputs


def _joined(group: list[_Captured]) -> StoredRows:
    version, first, found = group[0].version, group[0].answered, [c.answered for c in group]
    counts = [rows for a in found for rows in a.counts]
    ids = [request_id for a in found for request_id in a.request_ids]
    return StoredRows(
        model=version.model,
        version=version.number,
        index=version.index,
        request_ids=[request_id for request_id, rows in zip(ids, counts, strict=True) for _ in range(rows)],
        times=np.repeat(np.array([c.time for c in group for _ in c.answered.counts]), counts),
        inputs={n: _stack([a.inputs[n] for a in found]) for n in first.inputs if _storable(first.inputs[n])},
        outputs={n: _stack([a.outputs[i] for a in found]) for i, n in enumerate(version.names) if _storable(first.outputs[i])},
        adapter=first.adapter_name,
    )


def _portions(group: Iterable[_Captured]) -> Iterator[list[_Captured]]:
    """As much as is stored at once, so that memory does not follow the traffic."""
    portion: list[_Captured] = []
    rows = 0
    for captured in group:
        portion.append(captured)
        rows += captured.answered.rows
        if rows >= _STORED_ROWS:
            yield portion
            portion, rows = [], 0
    if portion:
        yield portion


def _stack(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _storable(array: Array) -> bool:
    """Text stays out of the store: it has no edges to count over, and may hold anything."""
    return array.dtype.kind != "O"

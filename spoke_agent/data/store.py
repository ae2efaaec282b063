"""Local rows, predictions and labels: encrypted at the site, bounded by rows, bytes and age.

Rows are kept in batches, one sealed record each, so that capture costs little. A label finds its row by the request id, of which
only a keyed handle is stored. When a batch falls out of the window, a fair sample of its labelled rows stays, up to
`max_kept_rows`. Several processes may open the same file (SQLite, WAL).
"""

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import time as wall_time
from typing import Any

import numpy as np
from msgspec import Struct

from model_formats.core.runtime import Array
from spoke_agent.data.clock_guard import STEP_S, ClockGuard
from spoke_agent.data.crypto import SiteKey, site_key
from spoke_agent.data.database import open_database
from spoke_agent.data.errors import DataKeyLost, LabelRefused
from spoke_agent.data.rows import Purpose, RowBatch, StoredBatch, decode, encode
from spoke_agent.site.home import SpokeHome

__all__ = ["RowBatch", "DataStore", "DataLimits", "StoredBatch", "open_data"]

_ROWS, _LABELS = "rows", "labels"
_LATEST = "SELECT id FROM batches WHERE model = ? AND kept = 0 AND purpose = 'serving' ORDER BY id DESC"


class DataLimits(Struct, frozen=True):
    """How much is kept. Age in days, sizes in rows and in bytes of sealed records."""

    max_rows: int = 200_000
    max_bytes: int = 256 << 20
    max_age_days: float = 90.0
    max_kept_rows: int = 2000
    max_pending_labels: int = 10_000


class _TakenBack(Exception):
    """Nothing went wrong: it ends a transaction that shall leave no trace."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


class DataStore:
    """Thread-safe. Labels are whole numbers for classifiers (position of the class), any number for regression."""

    def __init__(
        self,
        path: Path,
        key: SiteKey,
        *,
        limits: DataLimits | None = None,
        regime: str = "none",
        now: Callable[[], float] = wall_time,
    ) -> None:
        """Raises DataKeyLost when the file was written under another key."""
        self._connection = open_database(path)
        self._key = key
        self._limits = limits or DataLimits()
        self._regime = regime
        self._now = now
        self._lock = threading.RLock()
        self._claim(path)

    # ---- writing ----------------------------------------------------------------------------------------------------------

    def append(self, batch: RowBatch) -> int:
        """Store rows; returns the id of the stored batch. Labels that came early are joined. Raises BatchInvalid."""
        batch.check()
        plain = encode(batch.inputs, batch.outputs, batch.times, batch.features)
        sealed = self._key.seal(_ROWS, plain, _bound(batch.model, batch.version, batch.index))
        with self._transaction():
            number = self._insert(batch, sealed)
            self._index_requests(number, batch)
        self._prune()
        return number

    def label(self, request_id: str, label: float | Sequence[float]) -> bool:
        """Set the label (or one per row) of a request. False: the request is not known yet; the label waits for it.

        Raises LabelRefused when the number of labels differs from the request's rows, or a class does not exist.
        """
        values = [float(v) for v in (label if isinstance(label, Sequence) else [label])]
        if not values or not np.isfinite(values).all():
            raise LabelRefused("a label is missing or not a finite number")
        handle = self._key.handle(request_id)
        with self._transaction():
            found = self._one("SELECT batch, row, count FROM requests WHERE handle = ?", handle)
            if found is None:
                self._wait(handle, values)
                return False
            number, first, count = found
            self._set_labels(number, first, count, values)
        return True

    def label_rows(self, labels: Mapping[str, float]) -> int:
        """Labels of many one-row requests at once, each batch opened once; returns how many found their row."""
        handles = {self._key.handle(request_id): value for request_id, value in labels.items()}
        places: dict[int, list[tuple[int, float]]] = {}
        with self._transaction():
            for handle, value in handles.items():
                found = self._one("SELECT batch, row FROM requests WHERE handle = ?", handle)
                if found is not None:
                    # Grouped by batch, since to label one row its whole batch must be decrypted.
                    places.setdefault(found[0], []).append((found[1], value))
            for number, rows in places.items():
                batch = self._load(number)
                for row, value in rows if batch is not None else ():
                    self._store_label(number, row, value, correct=_agrees(batch, row, value))  # type: ignore[arg-type]
        return sum(len(rows) for rows in places.values())

    # ---- reading ----------------------------------------------------------------------------------------------------------

    def labelled_accuracy(self, model: str, index: str, since: datetime | float | None = None) -> tuple[int, int]:
        """(labelled rows, of them correct) among what callers asked this package version since then."""
        row = self._one(
            "SELECT count(correct), coalesce(sum(correct), 0) FROM labels JOIN batches ON batches.id = labels.batch "
            "WHERE model = ? AND idx = ? AND batches.end >= ? AND purpose = 'serving'",
            model,
            index,
            _seconds(since),
        )
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def labels(self, model: str, index: str) -> int:
        """Labels there are for this package version, whatever the rows are here for."""
        query = "SELECT count(*) FROM labels JOIN batches ON batches.id = batch WHERE model = ? AND idx = ?"
        row = self._one(query, model, index)
        return int(row[0]) if row else 0

    def count(self, model: str, *, index: str | None = None, after: int = 0) -> int:
        """Rows of callers stored behind the batch `after`."""
        row = self._one(
            "SELECT coalesce(sum(rows), 0) FROM batches WHERE model = ? AND id > ? AND kept = 0 AND purpose = 'serving' "
            "AND (? IS NULL OR idx = ?)",
            model,
            after,
            index,
            index,
        )
        return int(row[0]) if row else 0

    def batches(
        self,
        model: str,
        *,
        index: str | None = None,
        after: int = 0,
        since: datetime | float | None = None,
        kept: bool = False,
        purpose: Purpose | None = None,
    ) -> Iterator[StoredBatch]:
        """Stored batches in order, decrypted one at a time. `after` is the id of the last batch already seen.

        With `kept`, also the labelled rows that outlived their batch. `purpose`: only what is here for that.
        """
        numbers = self._all(
            "SELECT id FROM batches WHERE model = ? AND id > ? AND end >= ? AND (? IS NULL OR idx = ?) AND kept <= ? "
            "AND (? IS NULL OR purpose = ?) ORDER BY id",
            model,
            after,
            _seconds(since),
            index,
            index,
            int(kept),
            purpose,
            purpose,
        )
        for (number,) in numbers:
            batch = self._load(number)
            if batch is not None:
                yield batch

    def labelled(self, model: str, *, index: str | None = None, limit: int | None = None) -> Iterator[StoredBatch]:
        """The labelled rows only, newest batch first, until `limit` rows are out."""
        numbers = self._all(
            "SELECT DISTINCT batches.id FROM batches JOIN labels ON labels.batch = batches.id "
            "WHERE model = ? AND (? IS NULL OR idx = ?) ORDER BY batches.id DESC",
            model,
            index,
            index,
        )
        left = limit if limit is not None else 2**62
        for (number,) in numbers:
            batch = self._load(number)
            if batch is None:
                continue
            chosen = np.flatnonzero(~np.isnan(batch.labels))[-left:] if left else np.empty(0, np.int64)
            if not len(chosen):
                return
            left -= len(chosen)
            yield batch.where(chosen)

    def latest(self, model: str, *, limit: int) -> Iterator[StoredBatch]:
        """What callers sent last, labelled or not, newest batch first, until `limit` rows are out."""
        left = limit
        for (number,) in self._all(_LATEST, model):
            batch = self._load(number) if left > 0 else None
            if batch is None:
                return
            chosen = np.arange(len(batch.times))[-left:]
            left -= len(chosen)
            yield batch.where(chosen)

    def summary(self) -> list[dict[str, Any]]:
        """Counts by model and version, for people."""
        names = ("model", "version", "index", "rows", "labelled", "correct", "first", "last", "bytes")
        rows = self._all(
            "SELECT model, version, idx, sum(rows), (SELECT count(*) FROM labels JOIN batches b ON b.id = labels.batch "
            "WHERE b.model = batches.model AND b.idx = batches.idx), (SELECT sum(correct) FROM labels JOIN batches b "
            "ON b.id = labels.batch WHERE b.model = batches.model AND b.idx = batches.idx), min(start), max(end), sum(bytes) "
            "FROM batches GROUP BY model, version, idx ORDER BY model, version"
        )
        return [dict(zip(names, row, strict=True)) for row in rows]

    # ---- erasing ----------------------------------------------------------------------------------------------------------

    def erase(self, *, before: datetime | float | None = None, request_ids: Sequence[str] = (), everything: bool = False) -> int:
        """Remove rows for good: content overwritten, write-ahead log emptied. `erasure.py` erases what was made of them."""
        with self._transaction():
            gone = self._remove(before, request_ids, everything=everything)
        # Until then the old pages, with the erased rows, are still in the write-ahead log.
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def would_erase(
        self, *, before: datetime | float | None = None, request_ids: Sequence[str] = (), everything: bool = False
    ) -> int:
        """How many rows `erase` with the same words would remove: it is done, counted and taken back."""
        try:
            with self._transaction():
                raise _TakenBack(self._remove(before, request_ids, everything=everything))
        except _TakenBack as e:
            return e.rows

    def touched(
        self, *, before: datetime | float | None = None, request_ids: Sequence[str] = (), everything: bool = False
    ) -> frozenset[int]:
        """The stored batches that `erase` with the same words would change, by the ids they had when they were stored."""
        numbers = self._starting_before(None if everything else _seconds(before))
        found = (self._one("SELECT batch FROM requests WHERE handle = ?", self._key.handle(r)) for r in request_ids)
        numbers += [row[0] for row in found if row is not None]
        rows = (self._one("SELECT coalesce(origin, id) FROM batches WHERE id = ?", number) for number in numbers)
        return frozenset(int(row[0]) for row in rows if row is not None)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _remove(self, before: datetime | float | None, request_ids: Sequence[str], *, everything: bool) -> int:
        moment = None if everything else _seconds(before)
        gone = sum(self._erase_rows(number, before=moment) for number in self._starting_before(moment))
        gone += sum(self._erase_request(self._key.handle(request_id)) for request_id in request_ids)
        if everything:
            self._connection.execute("DELETE FROM pending")
        return gone

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _claim(self, path: Path) -> None:
        with self._transaction():
            # The first key claims the file: with rows under two keys, neither could read it whole.
            self._connection.execute("INSERT OR IGNORE INTO about VALUES ('key', ?)", (self._key.fingerprint,))
            (owner,) = self._one("SELECT value FROM about WHERE name = 'key'") or ("",)
        if owner != self._key.fingerprint:
            raise DataKeyLost(f"{path.name} was written under another site key")

    def _insert(self, batch: RowBatch, sealed: bytes, *, origin: int | None = None) -> int:
        times = np.asarray(batch.times, np.float64)
        cursor = self._connection.execute(
            "INSERT INTO batches (model, version, idx, adapter, start, end, rows, bytes, kept, origin, regime, purpose, sealed) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                batch.model,
                batch.version,
                batch.index,
                batch.adapter,
                float(times.min()),
                float(times.max()),
                batch.rows,
                len(sealed),
                int(origin is not None),
                origin,
                self._regime,
                batch.purpose,
                sealed,
            ),
        )
        return int(cursor.lastrowid or 0)

    def _index_requests(self, number: int, batch: RowBatch) -> None:
        spans: dict[str, tuple[int, int]] = {}
        for row, request_id in enumerate(batch.request_ids):
            if request_id:
                first, count = spans.get(request_id, (row, 0))
                spans[request_id] = (first, count + 1)
        handles = [(self._key.handle(r), number, first, count) for r, (first, count) in spans.items()]
        self._connection.executemany("INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)", handles)
        # Labels rarely come before their rows; one cheap look spares a query for each row.
        if self._one("SELECT 1 FROM pending LIMIT 1"):
            self._join_waiting(handles)

    def _join_waiting(self, handles: list[tuple[bytes, int, int, int]]) -> None:
        for handle, number, first, count in handles:
            row = self._one("DELETE FROM pending WHERE handle = ? RETURNING sealed", handle)
            if row:
                data = self._key.unseal(_LABELS, row[0], handle)
                with contextlib.suppress(LabelRefused):  # nobody waits for the answer any more; the row stays unlabelled
                    self._set_labels(number, first, count, list(struct.unpack(f"<{len(data) // 8}d", data)))

    def _wait(self, handle: bytes, values: list[float]) -> None:
        sealed = self._key.seal(_LABELS, struct.pack(f"<{len(values)}d", *values), handle)
        self._connection.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, ?)", (handle, self._now(), sealed))
        self._connection.execute(
            "DELETE FROM pending WHERE handle IN (SELECT handle FROM pending ORDER BY time DESC LIMIT -1 OFFSET ?)",
            # A caller can send labels for requests that never were: they are bounded, and the oldest go.
            (self._limits.max_pending_labels,),
        )

    def _set_labels(self, number: int, first: int, count: int, values: list[float]) -> None:
        if len(values) not in (1, count):
            raise LabelRefused(f"{len(values)} labels for a request of {count} rows")
        batch = self._load(number)
        if batch is None:
            return
        for offset in range(count):
            value = values[offset if len(values) > 1 else 0]
            self._store_label(number, first + offset, value, correct=_agrees(batch, first + offset, value))

    def _store_label(self, number: int, row: int, value: float, *, correct: bool | None) -> None:
        # Bound to its batch and row, so that nobody can move a label to another row in the file.
        sealed = self._key.seal(_LABELS, struct.pack("<d", value), _cell(number, row))
        self._connection.execute(
            "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?)",
            (number, row, None if correct is None else int(correct), self._now(), sealed),
        )

    def _load(self, number: int) -> StoredBatch | None:
        row = self._one("SELECT model, version, idx, adapter, kept, purpose, sealed FROM batches WHERE id = ?", number)
        if row is None:
            return None
        model, version, index, adapter, kept, purpose, sealed = row
        inputs, outputs, times, features = decode(self._key.unseal(_ROWS, sealed, _bound(model, version, index)))
        labels = np.full(len(times), np.nan)
        for at, cell in self._all("SELECT row, sealed FROM labels WHERE batch = ?", number):
            labels[at] = struct.unpack("<d", self._key.unseal(_LABELS, cell, _cell(number, at)))[0]
        return StoredBatch(number, model, version, index, times, inputs, outputs, labels, adapter, features, bool(kept), purpose)

    def _prune(self) -> None:
        limits = self._limits
        with self._transaction():
            self._erase_aged(self._now(), limits.max_age_days * 86400)
            while True:
                rows, size = self._one("SELECT coalesce(sum(rows), 0), coalesce(sum(bytes), 0) FROM batches WHERE kept = 0") or (
                    0,
                    0,
                )
                oldest = self._one("SELECT id FROM batches WHERE kept = 0 ORDER BY id LIMIT 1")
                if oldest is None or (rows <= limits.max_rows and size <= limits.max_bytes):
                    return
                self._retire(oldest[0])

    def _erase_aged(self, now: float, most: float) -> None:
        """Only by a clock that is believed. What is dated ahead of it was dated by one that was wrong: it ages from now on."""
        kept = self._one("SELECT value FROM about WHERE name = 'watch'")
        before = ClockGuard.read(kept[0]) if kept else ClockGuard(now)
        watch = before.looked(now)
        if watch is not before or not kept:
            self._connection.execute("INSERT OR REPLACE INTO about VALUES ('watch', ?)", (watch.text(),))
        if not watch.believed:
            return
        # The clock has just become trustworthy again: rows dated in its future would otherwise never age.
        if not before.believed:
            self._connection.execute("UPDATE batches SET end = ?, start = min(start, ?) WHERE end > ?", (now, now, now + STEP_S))
        self._erase_batches("end < ?", (now - most,))

    def _retire(self, number: int) -> None:
        batch = self._load(number)
        if batch is not None:
            self._keep_labelled(batch)
        self._erase_batches("id = ?", (number,))

    def _keep_labelled(self, batch: StoredBatch) -> None:
        labelled = batch.where(~np.isnan(batch.labels))
        if not labelled.rows or not self._limits.max_kept_rows:
            return
        rest = RowBatch(
            batch.model,
            batch.version,
            batch.index,
            [""] * labelled.rows,
            labelled.times,
            labelled.inputs,
            labelled.outputs,
            labelled.features,
            batch.adapter,
            batch.purpose,
        )
        plain = encode(rest.inputs, rest.outputs, rest.times, rest.features)
        sealed = self._key.seal(_ROWS, plain, _bound(rest.model, rest.version, rest.index))
        number = self._insert(rest, sealed, origin=batch.id)
        self._follow(batch, number)
        for row, value in enumerate(labelled.labels):
            self._store_label(number, row, float(value), correct=_agrees(labelled, row, float(value)))
        # Only after the insert: the new rows take part in the draw like all others.
        self._thin_kept()

    def _follow(self, batch: StoredBatch, number: int) -> None:
        """Requests of kept rows point to their new place, so that a person's rows can still be erased."""
        place = {int(old): new for new, old in enumerate(np.flatnonzero(~np.isnan(batch.labels)))}
        for handle, row in self._all("SELECT handle, row FROM requests WHERE batch = ?", batch.id):
            if row in place:
                self._connection.execute("UPDATE requests SET batch = ?, row = ? WHERE handle = ?", (number, place[row], handle))

    def _thin_kept(self) -> None:
        """Each batch has a ticket, a keyed hash of its number; the highest go until the rest fits, the newest as any other.

        So what stays is a fair sample of all that was ever kept (bottom-k sampling, Cohen and Kaplan 2007). Dropping one at
        random each time would not be: the old ones would have stood in every draw.
        """
        kept = self._all("SELECT id, rows, origin FROM batches WHERE kept = 1")
        left = sum(rows for _, rows, _ in kept)
        for number, rows, _ in sorted(kept, key=lambda b: self._key.handle(f"kept batch {b[2]}"), reverse=True):
            if left <= self._limits.max_kept_rows:
                return
            self._erase_batches("id = ?", (number,))
            left -= rows

    def _erase_batches(self, where: str, values: tuple[Any, ...]) -> int:
        chosen = f"SELECT id FROM batches WHERE {where}"  # noqa: S608 - `where` is one of our own literals
        (rows,) = self._one(f"SELECT coalesce(sum(rows), 0) FROM batches WHERE {where}", *values) or (0,)  # noqa: S608
        if rows:
            self._connection.execute(f"DELETE FROM labels WHERE batch IN ({chosen})", values)  # noqa: S608
            self._connection.execute(f"DELETE FROM requests WHERE batch IN ({chosen})", values)  # noqa: S608
            self._connection.execute(f"DELETE FROM batches WHERE {where}", values)  # noqa: S608
        return int(rows)

    def _starting_before(self, moment: float | None) -> list[int]:
        """Batches with rows before a moment; None: all."""
        return [int(n) for (n,) in self._all("SELECT id FROM batches WHERE ? IS NULL OR start < ? ORDER BY id", moment, moment)]

    def _erase_rows(self, number: int, *, before: float | None) -> int:
        """Rows of one batch: all of them, or those before a moment."""
        batch = None if before is None else self._load(number)
        if batch is None or before is None or not (batch.times >= before).any():
            return self._erase_batches("id = ?", (number,))
        keep = batch.times >= before
        gone = np.flatnonzero(~keep)
        self._rewrite(number, batch.where(keep))
        self._connection.execute("DELETE FROM requests WHERE batch = ? AND row <= ?", (number, int(gone.max())))
        self._connection.execute("UPDATE requests SET row = row - ? WHERE batch = ?", (len(gone), number))
        return len(gone)

    def _erase_request(self, handle: bytes) -> int:
        """Rewrite the batch without the rows of one request; returns how many went."""
        self._connection.execute("DELETE FROM pending WHERE handle = ?", (handle,))
        found = self._one("SELECT batch, row, count FROM requests WHERE handle = ?", handle)
        batch = self._load(found[0]) if found else None
        if found is None or batch is None:
            return 0
        number, first, count = found
        if count >= batch.rows:
            return self._erase_batches("id = ?", (number,))
        mask = np.ones(batch.rows, bool)
        mask[first : first + count] = False
        self._rewrite(number, batch.where(mask))
        self._shift(number, first, count)
        return int(count)

    def _rewrite(self, number: int, batch: StoredBatch) -> None:
        plain = encode(batch.inputs, batch.outputs, batch.times, batch.features)
        sealed = self._key.seal(_ROWS, plain, _bound(batch.model, batch.version, batch.index))
        self._connection.execute(
            "UPDATE batches SET sealed = ?, rows = ?, bytes = ?, start = ?, end = ? WHERE id = ?",
            (sealed, batch.rows, len(sealed), float(batch.times.min()), float(batch.times.max()), number),
        )
        self._connection.execute("DELETE FROM labels WHERE batch = ?", (number,))
        for row, value in enumerate(batch.labels):
            if not np.isnan(value):
                self._store_label(number, row, float(value), correct=_agrees(batch, row, float(value)))

    def _shift(self, number: int, first: int, count: int) -> None:
        self._connection.execute("DELETE FROM requests WHERE batch = ? AND row = ?", (number, first))
        self._connection.execute("UPDATE requests SET row = row - ? WHERE batch = ? AND row > ?", (count, number, first))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _one(self, query: str, *values: object) -> Any:
        with self._lock:
            return self._connection.execute(query, values).fetchone()

    def _all(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            return list(self._connection.execute(query, values).fetchall())


def open_data(
    home: Path, *, limits: DataLimits | None = None, regime: str = "none", now: Callable[[], float] = wall_time
) -> DataStore:
    """The store of one spoke: `data.db` under the site key (setting `site_key`), which is made at first use.

    Raises DataKeyLost when the file is there and the key is not, SiteKeyUnavailable when its token is not.
    """
    path = home / "data.db"
    key = site_key(home, _key_source(home), create=not path.exists())
    return DataStore(path, key, limits=limits, regime=regime, now=now)


def _key_source(home: Path) -> str:
    """The setting `site_key`. A home without settings costs a tuning process not even the memory of their definition."""
    if not SpokeHome(home).settings.exists() and "SPOKE_SITE_KEY" not in os.environ:
        return "file"
    from spoke_agent.site.settings import load_settings

    return load_settings(SpokeHome(home)).site_key


def _agrees(batch: StoredBatch, row: int, value: float) -> bool | None:
    """Whether the first output's arg-max is the label; None where the output is not a list of classes."""
    scores: Array = next(iter(batch.outputs.values()))[row].ravel()
    if scores.size < 2:
        return None
    if value != int(value) or not 0 <= value < scores.size:
        raise LabelRefused(f"label {value:g} is not a class: whole numbers from 0 to {scores.size - 1}")
    return bool(int(scores.argmax()) == int(value))


def _seconds(time: datetime | float | None) -> float:
    if time is None:
        return -1e18
    return time.timestamp() if isinstance(time, datetime) else float(time)


def _bound(model: str, version: int, index: str) -> bytes:
    return f"{model}\n{version}\n{index}".encode()


def _cell(number: int, row: int) -> bytes:
    return struct.pack("<qq", number, row)

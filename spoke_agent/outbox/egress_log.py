"""The log of every record that left or was refused: append-only, hash-chained, on disk before a byte is sent.

It has two chains. Every entry (refusals too) names the digest of the entry before it: that is the site's own log. Every
record that left names the digest of the record before it: the hub can check that chain without the log.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document
from model_formats.core.types import AwareDatetime, Digest, Name, digest_of
from spoke_agent.outbox.errors import LogBroken, LogUnwritable
from spoke_agent.outbox.policy import Day, EgressRule, SitePolicy
from sync.protocol.egress import EgressRecord, Kind
from sync.protocol.messages import EgressReceipt

__all__ = ["EgressLog", "LogEntry", "Logged", "Totals"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (
    sequence INTEGER PRIMARY KEY, entry BLOB NOT NULL, digest TEXT NOT NULL, kind TEXT NOT NULL, model TEXT,
    time REAL NOT NULL, allowed INTEGER NOT NULL, bytes INTEGER NOT NULL, epsilon REAL NOT NULL,
    until REAL, record BLOB, sealed BLOB, sent REAL);
CREATE INDEX IF NOT EXISTS log_by_time ON log (time);
CREATE INDEX IF NOT EXISTS log_waiting ON log (sequence) WHERE allowed = 1 AND sent IS NULL;
CREATE TABLE IF NOT EXISTS receipts (
    day TEXT PRIMARY KEY, sequence INTEGER NOT NULL, envelope BLOB NOT NULL, document BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS policies (digest TEXT PRIMARY KEY, first REAL NOT NULL, document BLOB NOT NULL);
"""


class LogEntry(Document):
    """One line of the log."""

    max_bytes: ClassVar[int] = 16 * 1024

    kind: Literal["egress-entry"] = "egress-entry"
    schema_: Literal[1] = 1
    sequence: Annotated[int, Meta(ge=1)]
    previous: Digest | None
    time: AwareDatetime
    asked: Kind
    model: Name | None
    why: EgressRule
    policy: Digest | None
    rows: Annotated[int, Meta(ge=0)]
    bytes: Annotated[int, Meta(ge=0)]
    epsilon_milli: Annotated[int, Meta(ge=0)] = 0
    record: Digest | None
    """Digest of the exact record that left; None for a refusal."""


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry with its record, as it stands on disk."""

    entry: LogEntry
    record: EgressRecord | None
    sent: bool


@dataclass(frozen=True, slots=True)
class Totals:
    """What `verify` found."""

    entries: int
    left: int
    refused: int
    waiting: int
    head: str | None
    receipted: int = 0
    """Number of the last record for which the hub gave a receipt; 0: none came."""


class EgressLog:
    """Thread-safe; the agent writes, the command line reads. Only rows that did leave may lose their sealed copy.

    All calls raise LogUnwritable where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
        self._lock = threading.RLock()
        with _wrapped():
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A record may be sent right after `add` returns, so its entry must survive a power cut.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)

    def add(self, entry: LogEntry, record: EgressRecord | None, sealed: bytes | None, until: float | None = None) -> None:
        """Append one entry, durably. `until`: exact end of the rows it speaks of (kept here only)."""
        row = (
            entry.sequence,
            entry.canonical(),
            entry.digest,
            entry.asked,
            entry.model,
            entry.time.timestamp(),
            int(record is not None),
            entry.bytes,
            entry.epsilon_milli / 1000,
            until,
            record.canonical() if record else None,
            sealed,
        )
        with self._lock, _wrapped():
            self._connection.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)

    def head(self) -> tuple[int, str | None]:
        """(sequence, digest) of the last entry; (0, None) at the start."""
        row = self._fetch("SELECT sequence, digest FROM log ORDER BY sequence DESC LIMIT 1")
        return (int(row[0][0]), str(row[0][1])) if row else (0, None)

    def keep_policy(self, policy: SitePolicy, now: datetime) -> None:
        """Remember a policy as it stood, the first time that it decides."""
        row = (policy.digest, now.timestamp(), policy.canonical())
        with self._lock, _wrapped():
            self._connection.execute("INSERT OR IGNORE INTO policies VALUES (?, ?, ?)", row)

    def keep_receipt(self, receipt: EgressReceipt, envelope: bytes) -> None:
        """Keep the hub's word on what it has, one a day, the newest. It must have been verified."""
        # One receipt a day is enough: each covers all records before it.
        row = (f"{receipt.time:%Y-%m-%d}", receipt.sequence, envelope, receipt.canonical())
        with self._lock, _wrapped():
            self._connection.execute(
                "INSERT INTO receipts VALUES (?, ?, ?, ?) ON CONFLICT (day) DO UPDATE SET sequence = excluded.sequence, "
                "envelope = excluded.envelope, document = excluded.document WHERE excluded.sequence > sequence",
                row,
            )

    def receipts(self) -> list[EgressReceipt]:
        """The hub's receipts, oldest first."""
        return [EgressReceipt.parse(bytes(d)) for (d,) in self._fetch("SELECT document FROM receipts ORDER BY day")]

    def policies(self) -> list[tuple[datetime, SitePolicy]]:
        """Every policy that ever decided here, with the time from which it did; oldest first."""
        rows = self._fetch("SELECT first, document FROM policies ORDER BY first")
        return [(datetime.fromtimestamp(first, UTC), SitePolicy.parse(bytes(document))) for first, document in rows]

    def last_record(self) -> tuple[int, str | None]:
        """(sequence, digest) of the last record that left."""
        row = self._fetch("SELECT record FROM log WHERE allowed = 1 ORDER BY sequence DESC LIMIT 1")
        if not row:
            return 0, None
        return EgressRecord.parse(row[0][0]).sequence, digest_of(row[0][0])

    def waiting(self) -> list[tuple[int, str, bytes]]:
        """(sequence, kind, envelope) of what has not left yet, oldest first."""
        rows = self._fetch("SELECT sequence, kind, sealed FROM log WHERE allowed = 1 AND sent IS NULL ORDER BY sequence")
        return [(int(s), str(k), bytes(d)) for s, k, d in rows]

    def mark_sent(self, sequence: int, now: datetime) -> None:
        """One message left; its sealed copy is not needed any more."""
        with self._lock, _wrapped():
            self._connection.execute("UPDATE log SET sent = ?, sealed = NULL WHERE sequence = ?", (now.timestamp(), sequence))

    def day(self, kind: Kind, model: str | None, now: datetime) -> Day:
        """What left in the last day and in 30 days, and how long ago something of this kind did."""
        at = now.timestamp()
        ((size, epsilon),) = self._fetch(
            "SELECT coalesce(sum(bytes), 0), coalesce(sum(epsilon), 0) FROM log WHERE allowed = 1 AND time > ?", at - 86400
        )
        ((month,),) = self._fetch(
            "SELECT coalesce(sum(epsilon), 0) FROM log WHERE allowed = 1 AND time > ?", at - timedelta(days=30).total_seconds()
        )
        ((last,),) = self._fetch("SELECT max(time) FROM log WHERE allowed = 1 AND kind = ? AND model IS ?", kind, model)
        return Day(int(size), float(epsilon), float(month), None if last is None else at - float(last))

    def spoken_until(self, kind: Kind, model: str | None) -> float | None:
        """Exact end of the rows that the last record of this kind and model spoke of."""
        ((until,),) = self._fetch("SELECT max(until) FROM log WHERE allowed = 1 AND kind = ? AND model IS ?", kind, model)
        return until  # type: ignore[no-any-return]

    def entries(self, *, since: datetime | None = None, refused: bool = True) -> Iterator[Logged]:
        """Entries in order, with the exact records."""
        rows = self._fetch(
            "SELECT entry, record, sent FROM log WHERE time >= ? AND allowed >= ? ORDER BY sequence",
            since.timestamp() if since else 0.0,
            int(not refused),
        )
        for entry, record, sent in rows:
            yield Logged(LogEntry.parse(entry), EgressRecord.parse(record) if record else None, sent is not None)

    def links(self, last: int) -> tuple[str, ...]:
        """The last links of the chain, oldest first: number and digest of each entry."""
        rows = self._fetch("SELECT sequence, digest FROM log ORDER BY sequence DESC LIMIT ?", last)
        return tuple(f"{sequence} {digest}" for sequence, digest in reversed(rows))

    def verify(self) -> Totals:
        """Follow both chains from the start. Raises LogBroken that names the first entry that does not fit.

        A cut-off end shows against the hub's receipts, and what came after the last of them against the last record it holds.
        """
        previous: str | None = None
        record_before: str | None = None
        records: list[str] = []
        left = waiting = number = 0
        # CAST, so that a value whose type was changed comes as bytes too, and is hashed like the others.
        rows = self._fetch("SELECT CAST(entry AS BLOB), digest, CAST(record AS BLOB), sent FROM log ORDER BY sequence")
        for number, (raw, digest, record, sent) in enumerate(rows, start=1):
            if digest_of(raw) != digest:
                raise LogBroken(f"entry {number}: its bytes were changed")
            entry = LogEntry.parse(raw)
            if entry.sequence != number or entry.previous != previous:
                raise LogBroken(f"entry {number}: an entry before it was removed or put in")
            if (digest_of(record) if record else None) != entry.record:
                raise LogBroken(f"entry {number}: the record kept beside it is not the one that left")
            if record:
                if EgressRecord.parse(record).previous != record_before:
                    raise LogBroken(f"entry {number}: its record does not follow the one before")
                record_before, left, waiting = digest_of(record), left + 1, waiting + (sent is None)
                records.append(record_before)
            previous = digest
        return Totals(number, left, number - left, waiting, previous, self._receipted(records))

    def _receipted(self, records: Sequence[str]) -> int:
        """Hold every receipt against the records of the log."""
        last = 0
        for receipt in self.receipts():
            if receipt.sequence > len(records):
                raise LogBroken(f"the hub has record {receipt.sequence} (since {receipt.time:%Y-%m-%d}); this log ends before it")
            if records[receipt.sequence - 1] != receipt.record:
                raise LogBroken(f"record {receipt.sequence} is not the one for which the hub gave a receipt")
            last = max(last, receipt.sequence)
        return last

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _fetch(self, query: str, *values: object) -> list[Any]:
        with self._lock, _wrapped():
            return list(self._connection.execute(query, values).fetchall())


@contextlib.contextmanager
def _wrapped() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as e:
        raise LogUnwritable(f"egress.db: {e}") from e

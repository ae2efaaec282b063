"""The durable state of the agent in SQLite: updates, the accepted directive, unacknowledged reports, and history.

WAL and `synchronous=FULL`: when a call returns, its rows are on disk; a power cut leaves the transaction whole or absent. One
transition is one transaction: the update's row, its line of history and the draft of its report are written together. A draft
is sealed (signed, with what is served then) after the state's first act, so a report never claims what has not happened yet.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from msgspec.json import decode, encode
from sqlite_utils import Database

from model_formats.core.document import DocumentRefused
from model_formats.core.errors import DeviceError
from spoke_agent.site.slots import Slot
from spoke_agent.update.state_machine import Event
from spoke_agent.update.update import Timer, Update
from sync.core.types import Reason, State
from sync.protocol.messages import DesiredModel, Directive, UpdateEvidence

__all__ = ["Draft", "Entry", "Journal", "JournalDamaged", "SealedReport", "UnreadableRow"]

_HISTORY = 1000
_REPORTS = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS updates (
  model TEXT PRIMARY KEY, generation INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
  saves INTEGER NOT NULL, crashes INTEGER NOT NULL, desired TEXT NOT NULL, entered TEXT NOT NULL,
  base TEXT, variant TEXT, fault_at TEXT, evidence TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS reports (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, version INTEGER NOT NULL, idx TEXT NOT NULL,
  generation INTEGER NOT NULL, previous TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
  sealed BLOB, acknowledged INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS history (
  id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL,
  generation INTEGER NOT NULL, previous TEXT NOT NULL, event TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


class JournalDamaged(DeviceError):
    """The journal is not a database, or cannot be written."""

    code = "journal_damaged"
    hint = "The spoke goes on serving. Move journal.db aside and start again: the hub's directive brings the rest back."


class UnreadableRow(DeviceError):
    """An update's row cannot be read; the model goes to last-good."""

    code = "journal_row_unreadable"


@dataclass(frozen=True, slots=True)
class Draft:
    """A report that is not signed yet."""

    sequence: int
    model: str
    version: int
    index: str
    generation: int
    previous: State
    state: State
    reason: Reason


@dataclass(frozen=True, slots=True)
class SealedReport:
    """A signed report that waits for its acknowledgement (or is the last of its model)."""

    sequence: int
    model: str
    data: bytes
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of history."""

    id: int
    time: datetime
    model: str
    version: int
    generation: int
    previous: str
    event: str
    state: str
    reason: str


class Journal:
    """`journal.db`. Used from one thread. Calls raise JournalDamaged when the disk refuses."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _wrapped(path):
            self._db = Database(path)
            self._db.enable_wal()
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        self._path = path
        path.chmod(0o600)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # ---- the directive

    def accept(self, directive: Directive) -> None:
        """Remember the directive that is being followed."""
        self._set("directive", directive.canonical().decode())

    def directive(self) -> Directive | None:
        """The directive that is being followed."""
        text = self._get("directive")
        return Directive.parse(text.encode()) if text else None

    @property
    def generation(self) -> int:
        """Generation of the accepted directive; 0 before the first."""
        directive = self.directive()
        return directive.generation if directive else 0

    # ---- clean stops

    def mark_running(self) -> bool:
        """Note that an agent runs; tells whether the one before it stopped cleanly."""
        clean = self._get("running") != "yes"
        self._set("running", "yes")
        return clean

    def mark_stopped(self) -> None:
        """Note a clean stop: the next start does not count as a crash."""
        self._set("running", "no")

    # ---- updates

    def updates(self) -> dict[str, Update | UnreadableRow]:
        """All rows; one that cannot be read comes as the error that says so."""
        return {row["model"]: _read_row(row) for row in self._rows("SELECT * FROM updates ORDER BY model")}

    def update(self, model: str) -> Update | UnreadableRow | None:
        """One model's row."""
        rows = list(self._rows("SELECT * FROM updates WHERE model = ?", (model,)))
        return _read_row(rows[0]) if rows else None

    def save(self, update: Update, *, previous: State, event: Event, report: bool = True) -> None:
        """One transition, durably: the row, its history, and the draft of its report."""
        with self._writing() as db:
            _write(db, "updates", _row(update), replace=True)
            _write(db, "history", _history(update, previous, event))
            if report:
                _write(db, "reports", _draft(update, previous))
            db.execute("DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?", [_HISTORY])

    def amend(self, update: Update) -> None:
        """Keep new terms or evidence of a row without a transition."""
        with self._writing() as db:
            _write(db, "updates", _row(update), replace=True)

    def note(self, update: Update, reason: Reason) -> None:
        """Draft a report of something that was turned away; the update stays as it is."""
        with self._writing() as db:
            _write(db, "reports", {**_draft(update, update.state), "reason": str(reason)})

    def forget(self, model: str) -> None:
        """Drop a row that makes no sense, with its unsigned reports."""
        with self._writing() as db:
            db.execute("DELETE FROM updates WHERE model = ?", [model])
            db.execute("DELETE FROM reports WHERE model = ? AND sealed IS NULL", [model])

    # ---- reports

    def drafts(self) -> list[Draft]:
        """Reports to be signed, oldest first."""
        return [_read_draft(row) for row in self._rows("SELECT * FROM reports WHERE sealed IS NULL ORDER BY sequence")]

    def seal(self, sequence: int, data: bytes) -> None:
        """Replace a draft by its signed bytes."""
        with self._writing() as db:
            db.execute("UPDATE reports SET sealed = ? WHERE sequence = ?", [data, sequence])

    def unacknowledged(self) -> list[SealedReport]:
        """Signed reports that nobody has confirmed, oldest first."""
        sql = "SELECT * FROM reports WHERE sealed NOT NULL AND NOT acknowledged ORDER BY sequence"
        return [_read_sealed(row) for row in self._rows(sql)]

    def latest(self) -> list[SealedReport]:
        """The last signed report of every model: what a hub that lost its memory needs."""
        sql = (
            "SELECT max(sequence) AS sequence, model, sealed, acknowledged FROM reports WHERE sealed NOT NULL"
            " GROUP BY model ORDER BY 1"
        )
        return [_read_sealed(row) for row in self._rows(sql)]

    def acknowledge(self, sequences: list[int]) -> None:
        """The hub's side has these; all but each model's last are dropped."""
        with self._writing() as db:
            for sequence in sequences:
                db.execute("UPDATE reports SET acknowledged = 1 WHERE sequence = ?", [sequence])
            db.execute(
                "DELETE FROM reports WHERE acknowledged AND sequence NOT IN (SELECT max(sequence) FROM reports GROUP BY model)"
            )
            db.execute("DELETE FROM reports WHERE sequence <= (SELECT max(sequence) FROM reports) - ?", [_REPORTS])

    # ---- history

    def history(self, limit: int = 50) -> list[Entry]:
        """The last transitions, newest first."""
        return [_read_entry(row) for row in self._rows("SELECT * FROM history ORDER BY id DESC LIMIT ?", (limit,))]

    def since(self, number: int) -> list[Entry]:
        """Transitions after one, oldest first."""
        return [_read_entry(row) for row in self._rows("SELECT * FROM history WHERE id > ? ORDER BY id", (number,))]

    def next_number(self, name: str) -> int:
        """A counter that only grows."""
        number = int(self._get(f"number:{name}") or 0) + 1
        self._set(f"number:{name}", str(number))
        return number

    # ---- inside

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> Iterator[dict[str, Any]]:
        with _wrapped(self._path):
            cursor = self._db.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return iter([dict(zip(names, row, strict=True)) for row in cursor.fetchall()])

    def _writing(self) -> "_Writing":
        return _Writing(self._db, self._path)

    def _get(self, key: str) -> str | None:
        rows = list(self._rows("SELECT value FROM meta WHERE key = ?", (key,)))
        return cast("str", rows[0]["value"]) if rows else None

    def _set(self, key: str, value: str) -> None:
        if self._get(key) != value:
            with self._writing() as db:
                _write(db, "meta", {"key": key, "value": value}, replace=True)


class _wrapped:
    """SQLite's errors become JournalDamaged."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise JournalDamaged(f"{self._path.name}: {error}") from error


class _Writing:
    """One transaction, begun at once so that two writers never deadlock."""

    def __init__(self, db: Database, path: Path) -> None:
        self._db, self._wrapped = db, _wrapped(path)

    def __enter__(self) -> Database:
        with self._wrapped:
            self._db.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._wrapped:
            if error is None:
                commit_now(self._db.conn)
            else:
                self._db.conn.rollback()
        self._wrapped.__exit__(kind, error, trace)


def commit_now(conn: sqlite3.Connection) -> None:
    """The one place where the journal reaches the disk."""
    try:
        conn.execute("COMMIT")
    except sqlite3.Error:
        conn.rollback()
        raise


def _write(db: Database, table: str, row: dict[str, Any], *, replace: bool = False) -> None:
    verb = "INSERT OR REPLACE" if replace else "INSERT"
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    db.execute(f"{verb} INTO {table} ({names}) VALUES ({marks})", list(row.values()))


def _row(update: Update) -> dict[str, Any]:
    return {
        "model": update.model,
        "generation": update.generation,
        "state": str(update.state),
        "reason": str(update.reason),
        "saves": update.saves,
        "crashes": update.crashes,
        "desired": update.desired.json.decode(),
        "entered": encode(update.entered).decode(),
        "base": update.base.json.decode() if update.base else None,
        "variant": update.variant,
        "fault_at": encode(update.fault_at).decode() if update.fault_at else None,
        "evidence": update.evidence.json.decode(),
    }


def _read_row(row: dict[str, Any]) -> Update | UnreadableRow:
    try:
        return Update(
            model=row["model"],
            desired=DesiredModel.of_json(row["desired"]),
            generation=row["generation"],
            state=State(row["state"]),
            reason=Reason(row["reason"]),
            entered=decode(row["entered"], type=Timer),
            saves=row["saves"],
            crashes=row["crashes"],
            base=Slot.of_json(row["base"]) if row["base"] else None,
            variant=row["variant"],
            fault_at=decode(row["fault_at"], type=Timer) if row["fault_at"] else None,
            evidence=UpdateEvidence.of_json(row["evidence"]),
        )
    except (ValueError, DocumentRefused, TypeError) as e:
        return UnreadableRow(f"update of {row['model']}: {e}")


def _history(update: Update, previous: State, event: Event) -> dict[str, Any]:
    return {
        "time": update.entered.wall.isoformat(),
        "model": update.model,
        "version": update.desired.version,
        "generation": update.generation,
        "previous": str(previous),
        "event": str(event),
        "state": str(update.state),
        "reason": str(update.reason),
    }


def _draft(update: Update, previous: State) -> dict[str, Any]:
    return {
        "model": update.model,
        "version": update.desired.version,
        "idx": update.desired.index,
        "generation": update.generation,
        "previous": str(previous),
        "state": str(update.state),
        "reason": str(update.reason),
    }


def _read_draft(row: dict[str, Any]) -> Draft:
    return Draft(
        row["sequence"],
        row["model"],
        row["version"],
        row["idx"],
        row["generation"],
        State(row["previous"]),
        State(row["state"]),
        Reason(row["reason"]),
    )


def _read_sealed(row: dict[str, Any]) -> SealedReport:
    return SealedReport(row["sequence"], row["model"], bytes(row["sealed"]), bool(row["acknowledged"]))


def _read_entry(row: dict[str, Any]) -> Entry:
    names = ("id", "model", "version", "generation", "previous", "event", "state", "reason")
    return Entry(time=datetime.fromisoformat(row["time"]), **{name: row[name] for name in names})


def as_line(entry: Entry) -> dict[str, Any]:
    """A line of history for printing."""
    return {**asdict(entry), "time": entry.time.isoformat(timespec="milliseconds")}

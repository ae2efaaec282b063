"""The SQLite file of local rows. Only model, times, counts and whether a label agreed are not encrypted."""

import sqlite3
from pathlib import Path

__all__ = ["open_database"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, version INTEGER NOT NULL, idx TEXT NOT NULL, adapter TEXT NOT NULL,
    start REAL NOT NULL, end REAL NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    kept INTEGER NOT NULL DEFAULT 0, origin INTEGER,
    regime TEXT NOT NULL DEFAULT 'none', purpose TEXT NOT NULL DEFAULT 'serving', sealed BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS batches_of_model ON batches (model, idx, id);
CREATE TABLE IF NOT EXISTS requests (
    handle BLOB PRIMARY KEY, batch INTEGER NOT NULL, row INTEGER NOT NULL, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_of_batch ON requests (batch);
CREATE TABLE IF NOT EXISTS labels (
    batch INTEGER NOT NULL, row INTEGER NOT NULL, correct INTEGER, time REAL NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (batch, row)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (handle BLOB PRIMARY KEY, time REAL NOT NULL, sealed BLOB NOT NULL) WITHOUT ROWID;
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Open (or create, mode 0600) with WAL, overwriting of deleted content, and a short wait for the other process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    connection = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
    # The server writes rows while the agent reads them for drift and tuning.
    connection.execute("PRAGMA journal_mode = WAL")
    # Not FULL as in the journal: a power cut may cost the last rows, but a sync for each batch would slow every request.
    connection.execute("PRAGMA synchronous = NORMAL")
    # Erased means overwritten, not only unlinked in the file.
    connection.execute("PRAGMA secure_delete = ON")
    connection.executescript(_SCHEMA)
    return connection

"""The connection to the database, and its schema steps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from hub.store.migrations import migrate
from model_formats.core.errors import HubError, OperatorError

__all__ = ["Database", "DatabaseDown", "DatabaseUnusable"]


class DatabaseDown(HubError):
    """The database does not answer."""

    code = "database_down"
    hint = "Is the database running, and is `database_url` right?"


class DatabaseUnusable(OperatorError):
    """The database URL is wrong, or its schema is newer than this program."""

    code = "database_unusable"
    hint = "Check `database_url`; after a downgrade of Spokeshave, restore the backup made before the upgrade."


class Database:
    """One database. Thread-safe; every call of `begin` or `read` is one transaction.

    One writer at a time, on both engines (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock of the transaction): so a rule
    may read, decide and write without retries, and the audit chain has no gaps. Readers never wait.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = _engine(url)
            self._reader = self._engine.execution_options(reading=True)
        except (ArgumentError, ImportError) as e:
            raise DatabaseUnusable(f"database_url: {e}") from e

    def open(self) -> "Database":
        """Bring the schema to this program's number. Raises DatabaseDown, DatabaseUnusable."""
        with self.begin() as connection:
            try:
                migrate(connection)
            except ValueError as e:
                raise DatabaseUnusable(str(e)) from e
        return self

    def begin(self) -> AbstractContextManager[Connection]:
        """A transaction that writes: committed at the end, rolled back on an exception."""
        return self._transaction(self._engine)

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that only reads."""
        return self._transaction(self._reader)

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except OperationalError as e:
            raise DatabaseDown(f"the database refused: {e.orig}") from e

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        # A PostgreSQL that was restarted leaves dead connections in the pool; each is tried before it is used.
        engine = create_engine(url, pool_pre_ping=True)
        event.listen(engine, "begin", _begin_postgres)
        return engine
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver's guess
    # WAL: readers go on while one writes. FULL: what was published, the generation of a directive for instance, must not be
    # forgotten in a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at the start. A transaction that reads first and writes later could otherwise fail halfway.
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")


def _begin_postgres(connection: Connection) -> None:
    if not connection.get_execution_options().get("reading"):
        # The same order on PostgreSQL: one writer at a time. The number is arbitrary, but all processes must use the same one.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(1936749939)")

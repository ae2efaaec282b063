"""The audit log on disk: append, read, check."""

import json
from collections.abc import Iterator, Mapping

from sqlalchemy import Connection, Row, insert, select

from hub.rules.audit import GENESIS, AuditLine, follow, verify
from hub.rules.audit_action import AuditAction
from hub.store.tables import audit

__all__ = ["append_audit", "audit_head", "read_audit", "verify_audit"]


def append_audit(
    connection: Connection, who: str, action: AuditAction, what: str, *, now: float, details: Mapping[str, str] | None = None
) -> AuditLine:
    """Add a line, in the transaction of the act it tells of: both happen or neither."""
    number, previous = audit_head(connection)
    line = follow(number, previous, now, who, action.value, what, details)
    values = {
        "number": line.number,
        "time": line.time,
        "who": who,
        "action": action,
        "what": what,
        "details": json.dumps(dict(line.details), sort_keys=True),
        "previous": previous,
        "digest": line.digest,
    }
    connection.execute(insert(audit).values(**values))
    return line


def audit_head(connection: Connection) -> tuple[int, str]:
    """Number and digest of the newest line."""
    row = connection.execute(select(audit.c.number, audit.c.digest).order_by(audit.c.number.desc()).limit(1)).one_or_none()
    return (row.number, row.digest) if row else (0, GENESIS)


def read_audit(connection: Connection, *, after: int = 0, limit: int = 1000) -> list[tuple[AuditLine, str]]:
    """Lines after a number, oldest first, each with its stored digest."""
    query = select(audit).where(audit.c.number > after).order_by(audit.c.number).limit(limit)
    return [_line(row) for row in connection.execute(query)]


def verify_audit(connection: Connection) -> int | None:
    """None when the chain is whole, else the number of the first line that does not fit."""
    return verify(_all(connection))


def _all(connection: Connection) -> Iterator[tuple[AuditLine, str]]:
    after = 0
    while page := read_audit(connection, after=after):
        yield from page
        after = page[-1][0].number


def _line(row: Row[tuple[object, ...]]) -> tuple[AuditLine, str]:
    line = AuditLine(row.number, row.time, row.who, row.action, row.what, json.loads(row.details), row.previous)
    return line, row.digest

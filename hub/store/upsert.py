"""Insert or replace in portable SQL. Safe because there is one writer at a time (see database.py)."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, and_, insert, update

__all__ = ["put"]


def put(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Set `values` on the row with this key; make the row where there is none."""
    where = and_(*(table.c[name] == value for name, value in key.items()))
    if not connection.execute(update(table).where(where).values(**values)).rowcount:
        connection.execute(insert(table).values(**key, **values))

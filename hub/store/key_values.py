"""Single values by key: the ports a hub keeps, its schema number."""

from sqlalchemy import Connection, select

from hub.store.tables import facts
from hub.store.upsert import put

__all__ = ["get_value", "set_value"]


def get_value(connection: Connection, key: str) -> str | None:
    """The value, None where there is none."""
    return connection.execute(select(facts.c.value).where(facts.c.key == key)).scalar_one_or_none()


def set_value(connection: Connection, key: str, value: str) -> None:
    """Keep a value."""
    put(connection, facts, {"key": key}, {"value": value})

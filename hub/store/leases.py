"""Leases: which of several hub processes runs a loop now. A process that dies loses its lease when the time is over."""

from sqlalchemy import Connection, delete, select

from hub.store.tables import leases
from hub.store.upsert import put

__all__ = ["release_leases", "take_lease"]


def take_lease(connection: Connection, name: str, owner: str, *, now: float, life_s: float) -> bool:
    """Take or renew the turn; False while another owner holds it."""
    found = connection.execute(select(leases.c.owner, leases.c.until).where(leases.c.name == name)).one_or_none()
    if found is not None and found.owner != owner and found.until > now:
        return False
    put(connection, leases, {"name": name}, {"owner": owner, "until": now + life_s})
    return True


def release_leases(connection: Connection, owner: str) -> None:
    """Give up all turns of an owner (a clean stop)."""
    connection.execute(delete(leases).where(leases.c.owner == owner))

"""Enrolment codes that were handed out: whether one is still good."""

from sqlalchemy import Connection, insert, select, update

from hub.store.tables import invites
from provisioning.identity.enrol import Invite

__all__ = ["add_invite", "find_invite", "spend_invite", "void_invites"]


def add_invite(connection: Connection, invite: Invite, *, now: float) -> None:
    """Keep the record of a code."""
    values = {"id": invite.id, "document": invite.canonical(), "created": now, "expires": invite.expires.timestamp()}
    connection.execute(insert(invites).values(**values))


def find_invite(connection: Connection, number: str) -> tuple[Invite, str | None] | None:
    """The record, and the digest of the request that has used the code, if any."""
    row = connection.execute(select(invites).where(invites.c.id == number)).one_or_none()
    return (Invite.parse(row.document), row.used_by) if row else None


def spend_invite(connection: Connection, number: str, request: str, *, now: float) -> None:
    """Mark it used, by the request with this digest."""
    connection.execute(update(invites).where(invites.c.id == number).values(used=now, used_by=request))


def void_invites(connection: Connection, *, now: float) -> int:
    """End all codes that are not used; returns how many."""
    open_ones = invites.c.used_by.is_(None)
    return connection.execute(update(invites).where(open_ones).values(used=now, used_by="void")).rowcount

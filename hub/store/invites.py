"""Enrolment codes that were handed out: whether one is still good."""

from sqlalchemy import Connection, insert, select, update

from hub.store.tables import invites
from provisioning.enrol import Invite

__all__ = ["add_invite", "find_invite", "spend_invite"]


def add_invite(connection: Connection, invite: Invite, *, now: float) -> None:
    """Keep the record of a code."""
    values = {"id": invite.id, "document": invite.canonical(), "created": now, "expires": invite.expires.timestamp()}
    connection.execute(insert(invites).values(**values))


def find_invite(connection: Connection, number: str) -> tuple[Invite, bool] | None:
    """The record, and whether the code was used."""
    row = connection.execute(select(invites).where(invites.c.id == number)).one_or_none()
    return (Invite.parse(row.document), row.used is not None) if row else None


def spend_invite(connection: Connection, number: str, *, now: float) -> None:
    """Mark it used."""
    connection.execute(update(invites).where(invites.c.id == number).values(used=now))

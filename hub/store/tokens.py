"""Bearer tokens of people and programs: 256 random bits, shown once, kept by SHA-256."""

import hashlib
import secrets

from sqlalchemy import Connection, insert, select, update

from hub.rules.access import Principal, Role, parse_roles
from hub.store.tables import tokens

__all__ = ["find_token", "list_tokens", "make_token", "revoke_token"]

PREFIX = "ssh1_"


def make_token(
    connection: Connection, name: str, roles: frozenset[Role], *, now: float, life_s: float | None = None
) -> tuple[str, str]:
    """A new token: (its id, the token itself)."""
    token, number = PREFIX + secrets.token_urlsafe(32), secrets.token_hex(8)
    values = {
        "id": number,
        "hash": _hash(token),
        "name": name,
        "roles": ",".join(sorted(roles)),
        "created": now,
        "expires": None if life_s is None else now + life_s,
    }
    connection.execute(insert(tokens).values(**values))
    return number, token


def find_token(connection: Connection, token: str, *, now: float) -> Principal | None:
    """Who holds it; None when unknown, expired or revoked."""
    row = connection.execute(select(tokens).where(tokens.c.hash == _hash(token))).one_or_none()
    if row is None or row.revoked is not None or (row.expires is not None and row.expires <= now):
        return None
    return Principal(row.name, parse_roles(row.roles))


def list_tokens(connection: Connection) -> list[dict[str, object]]:
    """All tokens without their secrets."""
    columns = [tokens.c[name] for name in ("id", "name", "roles", "created", "expires", "revoked")]
    return [dict(row._mapping) for row in connection.execute(select(*columns).order_by(tokens.c.created))]


def revoke_token(connection: Connection, number: str, *, now: float) -> bool:
    """End a token; False when there is none that lives."""
    dead = update(tokens).where(tokens.c.id == number, tokens.c.revoked.is_(None)).values(revoked=now)
    return bool(connection.execute(dead).rowcount)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

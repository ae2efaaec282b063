"""Records that came through outboxes, as signed, and which of them are quarantined."""

from dataclasses import dataclass

from sqlalchemy import Connection, Row, func, insert, select

from hub.store.tables import egress
from sync.core.types import SpokeId
from sync.protocol.egress import EgressRecord

__all__ = ["KeptEgress", "add_egress", "last_egress", "list_egress", "spokes_that_said"]


@dataclass(frozen=True, slots=True)
class KeptEgress:
    """One record as it was received (UTC seconds, the hub's clock)."""

    record: EgressRecord
    received: float
    quarantined: str | None
    """Why it is not believed; None: it is."""
    envelope: bytes
    """As it came: signed by the device key."""


def add_egress(
    connection: Connection, record: EgressRecord, envelope: bytes, *, now: float, quarantined: str | None = None
) -> bool:
    """Keep a record; False when it was here already."""
    if connection.execute(select(egress.c.kind).where(egress.c.digest == record.digest)).first():
        return False
    values = {
        "digest": record.digest,
        "site": record.site,
        "spoke": record.spoke,
        "kind": record.body.kind,
        "sequence": record.sequence,
        "model": record.model,
        "received": now,
        "quarantined": quarantined,
        "document": record.canonical(),
        "envelope": envelope,
    }
    connection.execute(insert(egress).values(**values))
    return True


def last_egress(connection: Connection, spoke: SpokeId) -> EgressRecord | None:
    """The newest record of a spoke that is believed: what the next one must follow."""
    query = select(egress).where(egress.c.site == spoke.site, egress.c.spoke == spoke.spoke, egress.c.quarantined.is_(None))
    row = connection.execute(query.order_by(egress.c.sequence.desc()).limit(1)).one_or_none()
    return _kept(row).record if row else None


def list_egress(
    connection: Connection,
    *,
    kind: str | None = None,
    model: str | None = None,
    site: str | None = None,
    since: float = 0,
    quarantined: bool = False,
    limit: int = 1000,
) -> list[KeptEgress]:
    """Newest first; with `quarantined`, those too."""
    query = select(egress).where(egress.c.received >= since).order_by(egress.c.received.desc()).limit(limit)
    for column, value in ((egress.c.kind, kind), (egress.c.model, model), (egress.c.site, site)):
        query = query if value is None else query.where(column == value)
    query = query if quarantined else query.where(egress.c.quarantined.is_(None))
    return [_kept(row) for row in connection.execute(query)]


def spokes_that_said(connection: Connection, kind: str, model: str, *, since: float) -> int:
    """How many spokes sent a believed record of a kind about a model, without reading them."""
    said = select(egress.c.site, egress.c.spoke).where(egress.c.kind == kind, egress.c.model == model, egress.c.received >= since)
    query = select(func.count()).select_from(said.where(egress.c.quarantined.is_(None)).distinct().subquery())
    return int(connection.execute(query).scalar_one())


def _kept(row: Row[tuple[object, ...]]) -> KeptEgress:
    return KeptEgress(EgressRecord.parse(bytes(row.document)), row.received, row.quarantined, bytes(row.envelope))

"""The fleet: who is enrolled, when each was last heard from, and what it serves by its newest signed report."""

from dataclasses import dataclass

from msgspec.json import decode, encode
from sqlalchemy import ColumnElement, Connection, Row, and_, exists, select, update

from hub.store.tables import assignments, spokes
from hub.store.upsert import put
from sync.core.types import Regime, SpokeId
from sync.protocol.messages import Serving

__all__ = [
    "Spoke",
    "add_spoke",
    "enrolled_zones",
    "find_spoke",
    "list_spokes",
    "newcomers",
    "renewed_certificate",
    "revoke_spoke",
    "saw_report",
    "saw_serving",
    "saw_status",
]


@dataclass(frozen=True, slots=True)
class Spoke:
    """One row of the fleet. Times are UTC seconds."""

    id: SpokeId
    zone: str
    regime: Regime
    certificate: str
    serial: str
    enrolled: float
    revoked: float | None
    online: bool
    """A hint: its last status, or its last will."""
    last_seen: float | None
    last_sequence: int
    """Of the newest signed report."""
    serving: tuple[Serving, ...]
    """From the newest signed report."""
    serving_at: float | None

    def heard_since(self, time: float) -> bool:
        """Whether it is online and was heard of since then."""
        return self.online and self.revoked is None and (self.last_seen or 0) >= time


def add_spoke(
    connection: Connection, spoke: SpokeId, *, zone: str, regime: str, certificate: str, serial: str, now: float
) -> None:
    """Enrol, or enrol again with a new key; what it serves stays known, its report numbers start afresh."""
    values = {
        "zone": zone,
        "regime": regime,
        "certificate": certificate,
        "serial": serial,
        "enrolled": now,
        "revoked": None,
        "online": False,
        "last_sequence": 0,
        "serving": "[]",
        "serving_at": None,
    }
    put(connection, spokes, {"site": spoke.site, "spoke": spoke.spoke}, values)


def find_spoke(connection: Connection, spoke: SpokeId) -> Spoke | None:
    """One spoke, revoked or not."""
    row = connection.execute(select(spokes).where(_is(spoke))).one_or_none()
    return _spoke(row) if row else None


def list_spokes(connection: Connection, *, revoked: bool = False) -> list[Spoke]:
    """The fleet in order; with `revoked`, those too."""
    query = select(spokes).order_by(spokes.c.site, spokes.c.spoke)
    return [_spoke(row) for row in connection.execute(query if revoked else query.where(spokes.c.revoked.is_(None)))]


def newcomers(connection: Connection, model: str, *, since: float) -> list[Spoke]:
    """Spokes that enrolled since then and were never given anything of a model."""
    given = exists().where(
        assignments.c.site == spokes.c.site, assignments.c.spoke == spokes.c.spoke, assignments.c.model == model
    )
    query = select(spokes).where(spokes.c.revoked.is_(None), spokes.c.enrolled >= since, ~given)
    return [_spoke(row) for row in connection.execute(query.order_by(spokes.c.site, spokes.c.spoke))]


def enrolled_zones(connection: Connection) -> list[tuple[SpokeId, str]]:
    """All spokes that are not revoked, with their zones: what the broker's access list needs."""
    query = select(spokes.c.site, spokes.c.spoke, spokes.c.zone).where(spokes.c.revoked.is_(None))
    return [(SpokeId(row.site, row.spoke), row.zone) for row in connection.execute(query.order_by(spokes.c.site, spokes.c.spoke))]


def revoke_spoke(connection: Connection, spoke: SpokeId, *, now: float) -> None:
    """It may no longer speak or be spoken to."""
    connection.execute(update(spokes).where(_is(spoke)).values(revoked=now, online=False))


def renewed_certificate(connection: Connection, spoke: SpokeId, certificate: str, serial: str) -> None:
    """The same key under a new certificate."""
    connection.execute(update(spokes).where(_is(spoke)).values(certificate=certificate, serial=serial))


def saw_status(connection: Connection, spoke: SpokeId, *, online: bool, now: float) -> None:
    """A status message, or a last will."""
    connection.execute(update(spokes).where(_is(spoke)).values(online=online, last_seen=now))


def saw_report(connection: Connection, spoke: SpokeId, sequence: int, serving: tuple[Serving, ...], *, now: float) -> None:
    """A verified report: what is served is known anew."""
    told = {"last_sequence": sequence, "serving": encode(serving).decode(), "serving_at": now, "last_seen": now}
    connection.execute(update(spokes).where(_is(spoke)).values(**told))


def saw_serving(connection: Connection, spoke: SpokeId, serving: tuple[Serving, ...], *, now: float) -> None:
    """A signed word on what is served that came without a report (a file of receipts)."""
    told = {"serving": encode(serving).decode(), "serving_at": now}
    connection.execute(update(spokes).where(_is(spoke)).values(**told))


def _is(spoke: SpokeId) -> ColumnElement[bool]:
    return and_(spokes.c.site == spoke.site, spokes.c.spoke == spoke.spoke)


def _spoke(row: Row[tuple[object, ...]]) -> Spoke:
    return Spoke(
        id=SpokeId(row.site, row.spoke),
        zone=row.zone,
        regime=row.regime,
        certificate=row.certificate,
        serial=row.serial,
        enrolled=row.enrolled,
        revoked=row.revoked,
        online=bool(row.online),
        last_seen=row.last_seen,
        last_sequence=row.last_sequence,
        serving=decode(row.serving, type=tuple[Serving, ...]),
        serving_at=row.serving_at,
    )

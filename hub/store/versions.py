"""Released versions, as an index of the TUF metadata: for lists, targeting and claims. A spoke trusts the metadata only."""

import json
from dataclasses import dataclass

from sqlalchemy import Connection, Row, insert, select

from hub.store.tables import deltas, versions
from hub.store.upsert import put
from model_formats.core.types import ModelRef
from sync.protocol.messages import DeltaOffer

__all__ = ["VersionRecord", "add_delta", "add_version", "deltas_to", "find_version", "list_versions"]


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One released version."""

    ref: ModelRef
    index: str
    size: int
    signature: str
    """Digest of the publisher's bundle."""
    title: str
    zones: tuple[str, ...]
    regimes: tuple[str, ...]
    fallback: tuple[int, ...]
    """Versions that may follow this one backwards (the signed downgrade grant)."""
    claims: dict[str, float]
    """Score by variant, from the signed evidence."""
    overridden_by: str | None
    """Who let it through the accuracy gate by hand, if anybody."""
    published: float

    @property
    def claim(self) -> float | None:
        """The least that is claimed of any variant: a spoke may have chosen it."""
        return min(self.claims.values(), default=None)


def add_version(connection: Connection, version: VersionRecord) -> None:
    """Keep it; the same version again (another grant, other zones) replaces what was known, but not the day of its release."""
    held = find_version(connection, version.ref)
    values = {
        "index_digest": version.index,
        "size": version.size,
        "signature": version.signature,
        "title": version.title,
        "zones": json.dumps(version.zones),
        "regimes": json.dumps(version.regimes),
        "fallback": json.dumps(version.fallback),
        "claims": json.dumps(version.claims),
        "overridden_by": version.overridden_by,
        "published": held.published if held and held.index == version.index else version.published,
    }
    put(connection, versions, {"model": version.ref.name, "version": version.ref.version}, values)


def find_version(connection: Connection, ref: ModelRef) -> VersionRecord | None:
    """One version."""
    where = (versions.c.model == ref.name) & (versions.c.version == ref.version)
    row = connection.execute(select(versions).where(where)).one_or_none()
    return _version(row) if row else None


def list_versions(connection: Connection, model: str | None = None) -> list[VersionRecord]:
    """All, or those of one model, oldest first."""
    query = select(versions).order_by(versions.c.model, versions.c.version)
    return [_version(row) for row in connection.execute(query if model is None else query.where(versions.c.model == model))]


def add_delta(connection: Connection, ref: ModelRef, offer: DeltaOffer) -> None:
    """Keep a shortcut towards a file of a version."""
    where = (deltas.c.base == offer.base) & (deltas.c.target == offer.target)
    if connection.execute(select(deltas.c.delta).where(where)).first() is None:
        connection.execute(insert(deltas).values(**offer.plain, model=ref.name, version=ref.version))


def deltas_to(connection: Connection, ref: ModelRef) -> tuple[DeltaOffer, ...]:
    """All shortcuts towards a version."""
    where = (deltas.c.model == ref.name) & (deltas.c.version == ref.version)
    rows = connection.execute(select(deltas).where(where).order_by(deltas.c.base, deltas.c.target))
    return tuple(DeltaOffer(base=r.base, target=r.target, delta=r.delta, size=r.size) for r in rows)


def _version(row: Row[tuple[object, ...]]) -> VersionRecord:
    return VersionRecord(
        ref=ModelRef(row.model, row.version),
        index=row.index_digest,
        size=row.size,
        signature=row.signature,
        title=row.title,
        zones=tuple(json.loads(row.zones)),
        regimes=tuple(json.loads(row.regimes)),
        fallback=tuple(json.loads(row.fallback)),
        claims=json.loads(row.claims),
        overridden_by=row.overridden_by,
        published=row.published,
    )

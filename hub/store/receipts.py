"""Files of receipts that were carried back from spokes without a network; each is taken once."""

from sqlalchemy import Connection, insert, select

from hub.store.tables import receipts
from sync.core.types import SpokeId

__all__ = ["add_receipts", "imported_receipts", "receipts_before"]


def imported_receipts(connection: Connection, spoke: SpokeId) -> frozenset[int]:
    """Numbers that were imported since the spoke was enrolled."""
    where = (receipts.c.site == spoke.site) & (receipts.c.spoke == spoke.spoke)
    return frozenset(connection.execute(select(receipts.c.number).where(where)).scalars())


def receipts_before(connection: Connection, spoke: SpokeId, number: int) -> bytes | None:
    """The file that was made before this one, as it came; None where none has been imported."""
    where = (receipts.c.site == spoke.site) & (receipts.c.spoke == spoke.spoke) & (receipts.c.number < number)
    query = select(receipts.c.envelope).where(where).order_by(receipts.c.number.desc()).limit(1)
    return connection.execute(query).scalar()


def add_receipts(connection: Connection, spoke: SpokeId, number: int, envelope: bytes, *, now: float) -> None:
    """Keep a file as it came."""
    values = {"site": spoke.site, "spoke": spoke.spoke, "number": number, "received": now, "envelope": envelope}
    connection.execute(insert(receipts).values(**values))

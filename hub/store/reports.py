"""Signed reports as they came, and the newest one about each version."""

from dataclasses import dataclass

from sqlalchemy import Connection, Row, func, insert, select

from hub.store.tables import reports
from model_formats.core.document import Value
from sync.core.types import Reason, SpokeId, State
from sync.protocol.messages import Report, UpdateEvidence

__all__ = ["KeptReport", "add_report", "kept_envelope", "latest_about", "list_reports", "received_after"]


@dataclass(frozen=True, slots=True)
class KeptReport:
    """A verified report. Times are UTC seconds; `received` is by the hub's clock."""

    spoke: SpokeId
    sequence: int
    time: float
    received: float
    model: str
    version: int
    index: str
    generation: int
    state: State
    reason: Reason
    evidence: UpdateEvidence
    envelope: bytes


def add_report(connection: Connection, report: Report, envelope: bytes, *, now: float) -> None:
    """Keep a verified report and the envelope it came in."""
    values = {
        "site": report.site,
        "spoke": report.spoke,
        "sequence": report.sequence,
        "nonce": report.nonce,
        "time": report.time.timestamp(),
        "received": now,
        "model": report.model,
        "version": report.version,
        "index_digest": report.index,
        "generation": report.generation,
        "state": report.state.value,
        "reason": report.reason.value,
        "evidence": _json(report.evidence),
        "envelope": envelope,
    }
    connection.execute(insert(reports).values(**values))


def kept_envelope(connection: Connection, spoke: SpokeId, nonce: str) -> bytes | None:
    """The report that was kept under this nonce, as it came."""
    where = (reports.c.site == spoke.site) & (reports.c.spoke == spoke.spoke) & (reports.c.nonce == nonce)
    found = connection.execute(select(reports.c.envelope).where(where)).scalar_one_or_none()
    return None if found is None else bytes(found)


def received_after(connection: Connection, spoke: SpokeId, sequence: int, *, since: float) -> float | None:
    """When the first later report of a spoke came, since a time (two workers may take up neighbours in either order)."""
    where = (reports.c.site == spoke.site) & (reports.c.spoke == spoke.spoke) & (reports.c.sequence > sequence)
    query = select(func.min(reports.c.received)).where(where, reports.c.received >= since)
    found: float | None = connection.execute(query).scalar_one()
    return found


def latest_about(connection: Connection, model: str, index: str) -> dict[SpokeId, KeptReport]:
    """The newest report of every spoke about one version."""
    about = select(reports).where(reports.c.model == model, reports.c.index_digest == index)
    query = about.order_by(reports.c.received, reports.c.sequence)
    return {(kept := _report(row)).spoke: kept for row in connection.execute(query)}


def list_reports(
    connection: Connection, spoke: SpokeId | None = None, *, model: str | None = None, limit: int = 100
) -> list[KeptReport]:
    """Newest first."""
    query = select(reports).order_by(reports.c.received.desc(), reports.c.sequence.desc()).limit(limit)
    if spoke is not None:
        query = query.where(reports.c.site == spoke.site, reports.c.spoke == spoke.spoke)
    if model is not None:
        query = query.where(reports.c.model == model)
    return [_report(row) for row in connection.execute(query)]


def _json(value: Value) -> str:
    return value.json.decode()


def _report(row: Row[tuple[object, ...]]) -> KeptReport:
    return KeptReport(
        spoke=SpokeId(row.site, row.spoke),
        sequence=row.sequence,
        time=row.time,
        received=row.received,
        model=row.model,
        version=row.version,
        index=row.index_digest,
        generation=row.generation,
        state=State(row.state),
        reason=Reason(row.reason),
        evidence=UpdateEvidence.of_json(row.evidence),
        envelope=bytes(row.envelope),
    )

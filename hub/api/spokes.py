"""`/spokes`: the fleet."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from hub.api.access import HubPart, needs
from hub.api.values import AS_IT_IS
from hub.rules.access import Permission, Principal
from hub.services.directives import SpokeUnknown
from hub.services.enrolments import revoke
from hub.store.directives import assignments_of, find_directive
from hub.store.reports import KeptReport, list_reports
from hub.store.spokes import Spoke, find_spoke, list_spokes
from sync.core.types import SpokeId
from sync.protocol.messages import Serving, UpdateEvidence

__all__ = ["ReportView", "SpokeDetail", "SpokeSummary", "router", "summary", "when"]

router = APIRouter(prefix="/spokes", tags=["fleet"])
Reader = Annotated[Principal, Depends(needs(Permission.READ))]
Operator = Annotated[Principal, Depends(needs(Permission.ENROL))]


class SpokeSummary(BaseModel):
    """One line of the fleet."""

    spoke: str
    zone: str
    regime: str
    online: bool
    last_seen: datetime | None
    serving: list[Annotated[Serving, AS_IT_IS]]
    serving_at: datetime | None
    revoked: bool


class DesiredVersionView(BaseModel):
    """What a spoke should serve."""

    model: str
    version: int
    rollout: str | None


class ReportView(BaseModel):
    """A signed transition."""

    spoke: str
    sequence: int
    time: datetime
    received: datetime
    model: str
    version: int
    state: str
    reason: str
    evidence: Annotated[UpdateEvidence, AS_IT_IS]


class SpokeDetail(SpokeSummary):
    """One spoke with what it should do and what it said last."""

    enrolled: datetime
    generation: int
    wanted: list[DesiredVersionView]
    reports: list[ReportView]


@router.get("")
def spokes(hub: HubPart, _who: Reader, *, revoked: bool = False) -> list[SpokeSummary]:
    """All spokes."""
    with hub.database.read() as db:
        return [summary(hub.now, spoke, hub.settings.silent_after_s) for spoke in list_spokes(db, revoked=revoked)]


@router.get("/{site}/{name}")
def spoke(site: str, name: str, hub: HubPart, _who: Reader) -> SpokeDetail:
    """One spoke."""
    me = SpokeId.parse(f"{site}/{name}")
    with hub.database.read() as db:
        held = find_spoke(db, me)
        if held is None:
            raise SpokeUnknown(f"{me} is not enrolled")
        directive = find_directive(db, me)
        return SpokeDetail(
            **summary(hub.now, held, hub.settings.silent_after_s).model_dump(),
            enrolled=_time(held.enrolled),
            generation=directive.generation if directive else 0,
            wanted=[
                DesiredVersionView(model=a.ref.name, version=a.ref.version, rollout=a.rollout) for a in assignments_of(db, me)
            ],
            reports=[report_view(report) for report in list_reports(db, me, limit=20)],
        )


@router.delete("/{site}/{name}")
def end(site: str, name: str, hub: HubPart, who: Operator) -> SpokeSummary:
    """Revoke: no topic, no token, and its certificate on the revocation list."""
    me = SpokeId.parse(f"{site}/{name}")
    revoke(hub, me, who.name)
    with hub.database.read() as db:
        held = find_spoke(db, me)
    if held is None:
        raise SpokeUnknown(f"{me} is not enrolled")
    return summary(hub.now, held, hub.settings.silent_after_s)


def report_view(report: KeptReport) -> ReportView:
    """A report for people."""
    return ReportView(
        spoke=str(report.spoke),
        sequence=report.sequence,
        time=_time(report.time),
        received=_time(report.received),
        model=report.model,
        version=report.version,
        state=report.state.value,
        reason=report.reason.value,
        evidence=report.evidence,
    )


def when(seconds: float | None) -> datetime | None:
    """UTC seconds as a time, None as None."""
    return None if seconds is None else _time(seconds)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def summary(now: float, spoke: Spoke, silent_after_s: float) -> SpokeSummary:
    """A spoke for a list."""
    return SpokeSummary(
        spoke=str(spoke.id),
        zone=spoke.zone,
        regime=spoke.regime,
        online=spoke.heard_since(now - silent_after_s),
        last_seen=when(spoke.last_seen),
        serving=list(spoke.serving),
        serving_at=when(spoke.serving_at),
        revoked=spoke.revoked is not None,
    )

"""`/reports`, `/egress`, `/audit`, `/tokens`: what is on record."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from hub.api.access import HubPart, needs
from hub.api.spokes import ReportView, report_view, when
from hub.client.http import ApiRequestInvalid, NotFound
from hub.rules.access import Permission, Principal, parse_roles
from hub.rules.audit_action import AuditAction
from hub.store.audit import append_audit, audit_head, read_audit, verify_audit
from hub.store.egress import list_egress
from hub.store.reports import list_reports
from hub.store.tokens import list_tokens, make_token, revoke_token
from sync.core.types import SpokeId

__all__ = ["router"]

router = APIRouter(tags=["records"])
Reader = Annotated[Principal, Depends(needs(Permission.READ))]
Auditor = Annotated[Principal, Depends(needs(Permission.AUDIT))]
Operator = Annotated[Principal, Depends(needs(Permission.TOKENS))]
Limit = Annotated[int, Field(ge=1, le=10_000)]


class EgressView(BaseModel):
    """One outbox record as it came."""

    received: datetime | None
    quarantined: str | None
    digest: str
    record: dict[str, Any]


class AuditView(BaseModel):
    """One line of the audit log."""

    number: int
    time: datetime | None
    who: str
    action: str
    what: str
    details: dict[str, str]
    previous: str
    digest: str


class AuditVerdict(BaseModel):
    """Whether the chain is whole; `head` is worth writing down elsewhere."""

    ok: bool
    lines: int
    head: str
    first_misfit: int | None


class TokenOrder(BaseModel):
    """A token for a person or a program. `roles`: comma-separated."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    roles: str
    life_s: Annotated[float, Field(gt=0)] | None = None


@router.get("/reports")
def reports(
    hub: HubPart, _who: Reader, spoke: str | None = None, model: str | None = None, limit: Limit = 100
) -> list[ReportView]:
    """Signed reports, newest first."""
    with hub.database.read() as db:
        found = list_reports(db, SpokeId.parse(spoke) if spoke else None, model=model, limit=limit)
        return [report_view(report) for report in found]


@router.get("/egress")
def egress(
    hub: HubPart,
    _who: Reader,
    kind: str | None = None,
    model: str | None = None,
    site: str | None = None,
    limit: Limit = 100,
    *,
    quarantined: bool = False,
) -> list[EgressView]:
    """Outbox records, newest first."""
    with hub.database.read() as db:
        found = list_egress(db, kind=kind, model=model, site=site, limit=limit, quarantined=quarantined)
    return [
        EgressView(
            received=when(kept.received),
            quarantined=kept.quarantined,
            digest=kept.record.digest,
            record=kept.record.plain,
        )
        for kept in found
    ]


@router.get("/audit")
def audit(hub: HubPart, _who: Auditor, after: int = 0, limit: Limit = 1000) -> list[AuditView]:
    """Lines after a number, oldest first."""
    with hub.database.read() as db:
        found = read_audit(db, after=after, limit=limit)
    return [
        AuditView(
            number=line.number,
            time=when(line.time),
            who=line.who,
            action=line.action,
            what=line.what,
            details=dict(line.details),
            previous=line.previous,
            digest=digest,
        )
        for line, digest in found
    ]


@router.get("/audit/verify")
def audit_verify(hub: HubPart, _who: Auditor) -> AuditVerdict:
    """Walk the whole chain."""
    with hub.database.read() as db:
        misfit = verify_audit(db)
        number, head = audit_head(db)
    return AuditVerdict(ok=misfit is None, lines=number, head=head, first_misfit=misfit)


@router.get("/tokens")
def tokens(hub: HubPart, _who: Operator) -> list[dict[str, Any]]:
    """All tokens without their secrets."""
    with hub.database.read() as db:
        return list_tokens(db)


@router.post("/tokens")
def new_token(order: TokenOrder, hub: HubPart, who: Operator) -> dict[str, str]:
    """Make a token; it is shown this once."""
    try:
        roles = parse_roles(order.roles)
    except ValueError as e:
        raise ApiRequestInvalid(f"roles: {e}") from e
    with hub.database.begin() as db:
        number, token = make_token(db, order.name, roles, now=hub.now, life_s=order.life_s)
        append_audit(
            db, who.name, AuditAction.TOKEN_CREATE, order.name, now=hub.now, details={"id": number, "roles": order.roles}
        )
    return {"id": number, "token": token}


@router.delete("/tokens/{number}")
def end_token(number: str, hub: HubPart, who: Operator) -> dict[str, str]:
    """End a token at once."""
    with hub.database.begin() as db:
        if not revoke_token(db, number, now=hub.now):
            raise NotFound(f"no living token {number}")
        append_audit(db, who.name, AuditAction.TOKEN_REVOKE, number, now=hub.now)
    return {"id": number}

"""`/ca`, `/enrolments`: how a spoke gets its identity. The messages are those of provisioning/identity/enrol.py."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from hub.api.access import HubPart, needs, spoke_of_request
from hub.rules.access import Permission, Principal
from hub.services.enrolments import admit_spoke, invite_spoke, renew_spoke
from provisioning.identity.enrol import EnrolmentRequest, RenewalRequest
from sync.core.types import Regime, SpokeId

__all__ = ["router"]

router = APIRouter(tags=["enrolment"])
Operator = Annotated[Principal, Depends(needs(Permission.ENROL))]


class InviteOrder(BaseModel):
    """Whom to invite."""

    model_config = ConfigDict(extra="forbid")

    spoke: str
    zone: str
    regime: Regime
    life_s: Annotated[float, Field(gt=0)] | None = None


class InviteAnswer(BaseModel):
    """The code, shown once, and what goes with it: the address to enrol at, and until when the code holds."""

    spoke: str
    code: str
    hub: str
    expires: datetime


@router.get("/ca", response_class=Response)
def ca(hub: HubPart) -> Response:
    """The device CA's certificate, PEM. Open: a newcomer checks it against the pin in its code."""
    return Response(hub.ca.certificate, media_type="application/x-pem-file")


@router.post("/invites")
def invite(order: InviteOrder, hub: HubPart, who: Operator) -> InviteAnswer:
    """Make a one-time enrolment code."""
    spoke = SpokeId.parse(order.spoke)
    life_s = order.life_s or hub.settings.invite_ttl_s
    code = invite_spoke(hub, spoke, order.zone, order.regime, who.name, life_s=life_s)
    expires = hub.clock.now().replace(microsecond=0) + timedelta(seconds=life_s)
    return InviteAnswer(spoke=str(spoke), code=code, hub=hub.address.url if hub.address else "", expires=expires)


@router.post("/enrolments", response_class=Response)
async def enrol(request: Request, hub: HubPart) -> Response:
    """EnrolmentRequest in, EnrolmentGrant out. Open: the code's proof inside is the login."""
    asked = EnrolmentRequest.parse(await request.body())
    answer = await run_in_threadpool(admit_spoke, hub, asked)
    return Response(answer.canonical(), media_type="application/json")


@router.post("/enrolments/renew", response_class=Response)
async def renew(request: Request, hub: HubPart, spoke: Annotated[SpokeId, Depends(spoke_of_request)]) -> Response:
    """RenewalRequest in, RenewalGrant out; the login is the spoke's own token."""
    asked = RenewalRequest.parse(await request.body())
    answer = await run_in_threadpool(renew_spoke, hub, spoke, asked)
    return Response(answer.canonical(), media_type="application/json")

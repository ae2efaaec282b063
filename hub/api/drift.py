"""`/drift`: the sites' verdicts, histograms and estimates, summed up per version."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from hub.api.access import HubPart, needs
from hub.api.values import AS_IT_IS
from hub.rules.access import Permission, Principal
from hub.rules.fleet_drift import FleetDrift
from hub.services.drift import drift_view

__all__ = ["DriftView", "router"]

router = APIRouter(tags=["drift"])
Reader = Annotated[Principal, Depends(needs(Permission.READ))]


class DriftView(BaseModel):
    """One entry for every version that any site spoke of."""

    versions: list[Annotated[FleetDrift, AS_IT_IS]]


@router.get("/drift")
def drift(hub: HubPart, _who: Reader, model: str | None = None, days: Annotated[float, Field(gt=0, le=400)] = 30.0) -> DriftView:
    """Believed records of the last days, summed and put into words."""
    return DriftView(versions=list(drift_view(hub, model=model, days=days)))

"""`/drift`: what the sites' verdicts, histograms and estimates say together."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from hub.api.access import HubPart, needs
from hub.fleet.drift import FleetDrift, fleet_drift
from hub.fleet.profiles import profile_of
from hub.hub import Hub
from hub.rules.access import Permission, Principal
from hub.store.egress import list_egress
from model_formats.errors import SpokeshaveError
from model_formats.package import open_package

__all__ = ["DriftView", "router"]

router = APIRouter(tags=["drift"])
Reader = Annotated[Principal, Depends(needs(Permission.READ))]
_KINDS = ("drift_verdict", "drift_hist", "rff_mean", "perf_estimate")


class DriftView(BaseModel):
    """One entry for every version that any site spoke of."""

    versions: list[FleetDrift]


@router.get("/drift")
def drift(hub: HubPart, _who: Reader, model: str | None = None, days: Annotated[float, Field(gt=0, le=400)] = 30.0) -> DriftView:
    """Believed records of the last days, summed and put into words."""
    since = hub.now - timedelta(days=days).total_seconds()
    with hub.database.read() as db:
        kept = [k for kind in _KINDS for k in list_egress(db, kind=kind, model=model, since=since, limit=10_000)]
    return DriftView(
        versions=list(fleet_drift((k.record for k in kept), lambda i: profile_of(hub, i), claim_of=lambda i: _claim(hub, i)))
    )


def _claim(hub: Hub, index: str) -> float | None:
    """The lowest accuracy that the package claims for any of its variants."""
    try:
        evidence = open_package(hub.registry, index).evidence
    except SpokeshaveError:
        return None
    return min(v.score for v in evidence.variants) if evidence.metric == "accuracy" and evidence.variants else None

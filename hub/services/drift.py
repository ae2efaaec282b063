"""Reads the fleet's drift from the hub's database."""

from datetime import timedelta

from hub.context import HubContext
from hub.rules.fleet_drift import FleetDrift, fleet_drift
from hub.services.package_index import profile_of
from hub.store.egress import list_egress
from model_formats.core.errors import SpokeshaveError
from model_formats.package import open_package

__all__ = ["claim_of", "drift_view"]

_KINDS = ("drift_verdict", "drift_hist", "rff_mean", "perf_estimate")


def drift_view(hub: HubContext, *, model: str | None = None, days: float = 30.0) -> tuple[FleetDrift, ...]:
    """Believed records of the last days, summed and put into words."""
    since = hub.now - timedelta(days=days).total_seconds()
    with hub.database.read() as db:
        kept = [k for kind in _KINDS for k in list_egress(db, kind=kind, model=model, since=since, limit=10_000)]
    return fleet_drift((k.record for k in kept), lambda i: profile_of(hub, i), claim_of=lambda i: claim_of(hub, i))


def claim_of(hub: HubContext, index: str) -> float | None:
    """The lowest accuracy that the package claims for any of its variants."""
    try:
        evidence = open_package(hub.registry, index).evidence
    except SpokeshaveError:
        return None
    return min(v.score for v in evidence.variants) if evidence.metric == "accuracy" and evidence.variants else None

"""`/healthz`, `/readyz`, `/metrics`: for whoever watches the hub."""

from collections import Counter

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from hub.api.access import HubPart
from hub.store.audit import audit_head
from hub.store.rollouts import list_rollouts
from hub.store.spokes import list_spokes
from hub.store.versions import list_versions
from model_formats.core.errors import SpokeshaveError

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_class=Response)
def readyz(hub: HubPart) -> Response:
    """The database answers, and the broker is connected where there is one."""
    checks: dict[str, str] = {"database": "ok"}
    try:
        with hub.database.read() as db:
            audit_head(db)
    except SpokeshaveError as e:
        checks["database"] = e.message
    if hub.bus is not None:
        checks["broker"] = "ok" if hub.bus.connected else "not connected"
    ready = all(value == "ok" for value in checks.values())
    return JSONResponse({"ready": ready, "checks": checks}, status_code=200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(hub: HubPart) -> str:
    """Prometheus text."""
    with hub.database.read() as db:
        fleet, rollouts, versions, (lines, _) = list_spokes(db), list_rollouts(db), list_versions(db), audit_head(db)
    online = sum(spoke.heard_since(hub.now - hub.settings.silent_after_s) for spoke in fleet)
    serving = Counter((s.model, s.version, s.variant) for spoke in fleet for s in spoke.serving)
    states = Counter(held.state.value for held in rollouts)
    text = [
        *_metric("spokeshave_hub_spokes", "Enrolled spokes.", {"": len(fleet)}),
        *_metric("spokeshave_hub_spokes_online", "Spokes heard of lately.", {"": online}),
        *_metric("spokeshave_hub_versions", "Released versions.", {"": len(versions)}),
        *_metric("spokeshave_hub_audit_lines", "Lines of the audit chain.", {"": lines}),
        *_metric("spokeshave_hub_rollouts", "Rollouts by state.", {f'{{state="{s}"}}': n for s, n in states.items()}),
        *_metric(
            "spokeshave_hub_serving_spokes",
            "Spokes that serve a version, by their signed word.",
            {f'{{model="{m}",version="{v}",variant="{k}"}}': n for (m, v, k), n in serving.items()},
        ),
        *_metric("spokeshave_hub_block_bytes_total", "Bytes sent as blocks by this process.", {"": hub.sent.bytes}, "counter"),
    ]
    return "\n".join(text) + "\n"


def _metric(name: str, text: str, values: dict[str, int], kind: str = "gauge") -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *(f"{name}{labels} {value}" for labels, value in values.items())]

"""The hub as one ASGI application: API, registry, health. Everything it needs is in the HubContext that it is given."""

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hub.api import bundles, drift, enrolments, federated, health, models, records, rollouts, spokes
from hub.api.access import may_pull_or_push
from hub.api.problems import install_problems, problem
from hub.client.http import API, ApiRequestInvalid
from hub.context import HubContext
from hub.registry.admission_queue import AdmissionQueue
from hub.registry.routes import router as registry_router
from hub.web import page

__all__ = ["create_app"]

ROUTERS = (
    enrolments.router,
    spokes.router,
    models.router,
    rollouts.router,
    records.router,
    bundles.router,
    drift.router,
    federated.router,
)


def create_app(hub: HubContext) -> FastAPI:
    """Build it. Starts nothing: the loops are hub_process.py's."""
    app = FastAPI(title="Spokeshave hub", version="1", docs_url=None, redoc_url=None, openapi_url=f"{API}/openapi.json")
    app.state.hub = hub
    install_problems(app)
    for router in ROUTERS:
        app.include_router(router, prefix=API)
    app.include_router(health.router)
    app.include_router(page.router)
    admission = AdmissionQueue(hub.settings.blob_places, stall_s=hub.settings.blob_place_s)
    app.include_router(registry_router(hub.registry, may_pull_or_push, admission))
    app.add_middleware(_BodyLimit, limit=hub.settings.max_body_bytes)
    return app


class _BodyLimit:
    """Refuse large bodies of the API before they are read. (Pushes to the registry are streamed, and bounded there.)"""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(API) and self._excessive(Headers(scope=scope)):
            refusal = ApiRequestInvalid(f"the body must declare a length of at most {self._limit} bytes")
            await problem(refusal, status=413)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _excessive(self, headers: Headers) -> bool:
        length = headers.get("content-length", "0")
        return "transfer-encoding" in headers or not length.isdigit() or int(length) > self._limit

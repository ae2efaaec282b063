"""`/`: the fleet and the rollouts, rendered here, without scripts and without anything from elsewhere."""

from functools import lru_cache

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from hub.api.access import HubPart, needs
from hub.api.rollouts import RolloutView, whole
from hub.api.spokes import SpokeSummary, summary
from hub.client.http import NotAuthenticated
from hub.rules.access import Permission
from hub.store.rollouts import list_rollouts
from hub.store.spokes import list_spokes

__all__ = ["router"]

router = APIRouter(include_in_schema=False)
_LATEST = 5
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Cache-Control": "no-store"}


@router.get("/", response_class=HTMLResponse)
def page(request: Request, hub: HubPart) -> HTMLResponse:
    """The page. The browser asks for a name and a password: any name, and a token with role viewer."""
    try:
        who = needs(Permission.READ)(request)
    except NotAuthenticated as e:
        return HTMLResponse(e.hint, status_code=401, headers={**_HEADERS, "WWW-Authenticate": 'Basic realm="spokeshave"'})
    with hub.database.read() as db:
        spokes: list[SpokeSummary] = [summary(hub.now, spoke, hub.settings.silent_after_s) for spoke in list_spokes(db)]
        names = [held.plan.name for held in list_rollouts(db)[:_LATEST]]
    rollouts: list[RolloutView] = [whole(hub, name) for name in names]
    text = _template().render(hub=hub.settings.name, who=who.name, now=hub.clock.now(), spokes=spokes, rollouts=rollouts)
    return HTMLResponse(text, headers=_HEADERS)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(loader=PackageLoader("hub.web"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html")

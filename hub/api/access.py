"""Who is calling: people and programs by bearer token, spokes by a token that their device key signed."""

import base64
import binascii
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from hub.client.http import NotAuthenticated, NotAuthorised
from hub.context import HubContext
from hub.registry.errors import NotAuthorized
from hub.registry.routes import Action
from hub.rules.access import PERMISSIONS, Permission, Principal, allows
from hub.services.enrolments import certificate_of
from hub.store.spokes import find_spoke
from hub.store.tokens import find_token
from hub.store.versions import list_versions
from model_formats.core.errors import RefusedError
from provisioning.identity.token import verify_token
from sync.core.types import SpokeId

__all__ = ["HubPart", "hub_of", "may_pull_or_push", "needs", "spoke_of_request"]


def hub_of(request: Request) -> HubContext:
    """The hub that this application serves."""
    found: HubContext = request.app.state.hub
    return found


HubPart = Annotated[HubContext, Depends(hub_of)]


def needs(permission: Permission) -> Callable[[Request], Principal]:
    """A dependency: the caller, who has this permission. Raises NotAuthenticated, NotAuthorised."""

    def check(request: Request) -> Principal:
        who = _person(hub_of(request), _token_of(request))
        if who is None:
            raise NotAuthenticated("this needs a token, and the one given is missing or not valid")
        if not allows(who, permission):
            roles = ", ".join(sorted(PERMISSIONS[permission]))
            raise NotAuthorised(f"{who.name} may not {permission.value}; that needs one of: {roles}")
        return who

    return check


def spoke_of_request(request: Request) -> SpokeId:
    """A dependency: the calling spoke. Raises NotAuthenticated."""
    spoke = _spoke(hub_of(request), _token_of(request))
    if spoke is None:
        raise NotAuthenticated("this needs a spoke's own token")
    return spoke


def may_pull_or_push(request: Request, repository: str, action: Action) -> None:
    """The registry's rule. A spoke may pull what is released for its zone; people by permission. Raises NotAuthorized."""
    hub, token = hub_of(request), _token_of(request)
    person = _person(hub, token)
    if person is not None:
        wanted = Permission.READ if action == "pull" else Permission.PUBLISH
        if allows(person, wanted):
            return
        raise NotAuthorized(f"{person.name} may not {action}")
    spoke = _spoke(hub, token)
    zone = _zone(hub, spoke, repository) if spoke is not None and action == "pull" else None
    if spoke is None or zone is None:
        raise NotAuthorized(f"a token is needed to {action} {repository or 'here'}")
    request.state.zone, request.state.caller = zone, spoke.username


def _zone(hub: HubContext, spoke: SpokeId, model: str) -> str | None:
    """Zone of a spoke that may have something of this model ("": of none in particular)."""
    with hub.database.read() as db:
        row = find_spoke(db, spoke)
        if row is None:
            return "" if not model else None
        return row.zone if not model or any(row.zone in version.zones for version in list_versions(db, model)) else None


def _person(hub: HubContext, token: str | None) -> Principal | None:
    if token is None:
        return None
    with hub.database.read() as db:
        return find_token(db, token, now=hub.now)


def _spoke(hub: HubContext, token: str | None) -> SpokeId | None:
    if token is None:
        return None
    try:
        return verify_token(token, lambda spoke: certificate_of(hub, spoke), now=hub.clock.now())
    except RefusedError:
        return None


def _token_of(request: Request) -> str | None:
    """From `Bearer`, or the password of `Basic` (which is what OCI tools send)."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None

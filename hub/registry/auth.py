"""Logging in at other people's registries: the token dance of the distribution project, as an httpx authentication.

A registry answers 401 with `WWW-Authenticate: Bearer realm=...,service=...,scope=...`; the realm, asked with name and password,
gives a short-lived token for that scope. Registries that ask for `Basic` (ours does) get name and password as they are.
"""

import re
from collections.abc import Generator

import httpx

from hub.registry.errors import NotAuthorized

__all__ = ["RegistryAuth"]

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class RegistryAuth(httpx.Auth):
    """`httpx.Client(auth=RegistryAuth(user, password))` for `push` and `pull`. Tokens are kept per scope while they work."""

    def __init__(self, user: str, password: str, *, host: str | None = None) -> None:
        """`host`: (with port) the only one that is logged in to; blobs may lie behind links to others. None: any."""
        self._basic, self._host = httpx.BasicAuth(user, password), host
        self._headers: dict[tuple[str, bool], str] = {}

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Try with what is known; on 401 ask for what the registry wants, once. Raises NotAuthorized when the realm refuses."""
        if self._host not in (None, request.url.netloc.decode()):
            yield request
            return
        scope = _scope(request)
        if scope in self._headers:
            request.headers["Authorization"] = self._headers[scope]
        answer = yield request
        if answer.status_code != 401:
            return
        challenge = answer.headers.get("WWW-Authenticate", "")
        if challenge.lower().startswith("bearer "):
            token = yield self._token_request(challenge)
            token.read()  # this answer alone: `requires_response_body` would read every blob into memory
            self._headers[scope] = f"Bearer {_token_of(token)}"
        elif challenge.lower().startswith("basic"):
            self._headers[scope] = next(self._basic.auth_flow(request)).headers["Authorization"]
        else:
            return
        request.headers["Authorization"] = self._headers[scope]
        yield request

    def _token_request(self, challenge: str) -> httpx.Request:
        wanted = dict(_PARAMETER.findall(challenge))
        realm = wanted.pop("realm", "")
        if not realm.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise NotAuthorized(f"the registry sends the password to {realm!r}", hint="Only HTTPS realms are asked.")
        query = {key: wanted[key] for key in ("service", "scope") if key in wanted}
        return next(self._basic.auth_flow(httpx.Request("GET", realm, params=query)))


def _scope(request: httpx.Request) -> tuple[str, bool]:
    """What a token is for: a repository (the path up to the kind of thing in it), and whether to write there."""
    repository = re.split(r"/(?:blobs|manifests|tags|referrers)/", request.url.path)[0]
    return repository, request.method not in ("GET", "HEAD")


def _token_of(answer: httpx.Response) -> str:
    if answer.status_code != 200:
        raise NotAuthorized(f"{answer.request.url.host}: {answer.status_code} for this name and password")
    page = answer.json()
    return str(page.get("token") or page.get("access_token") or "")

"""The client of a hub's API: HTTPS with a bearer token, pinned to the hub's own CA.

Every command is one call here. A problem document becomes the error class of its code, so that a command fails with the same
message, hint and exit status whether the hub is in this process or far away.
"""

import json
import os
import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from hub.config.home import HubHome
from model_formats.core.errors import AuthorError, DeviceError, HubError, OperatorError, RefusedError, SpokeshaveError, catalog
from model_formats.core.files import atomic_file

__all__ = ["ApiRequestInvalid", "HubClient", "HubUnavailable", "NotAuthenticated", "NotAuthorised", "NotFound"]

API = "/api/v1"


class HubUnavailable(HubError):
    """Nothing answers at the hub's address."""

    code = "hub_away"
    hint = "Start it with `hub up`, or name another: address in HUB_URL, its CA's file in HUB_CA, a token in HUB_TOKEN."


class NotAuthenticated(OperatorError):
    """No token, or one that is unknown, expired or revoked."""

    code = "not_authenticated"
    http = 401
    hint = "Give a token in HUB_TOKEN; without one, the operator's is used on the hub's own machine."


class NotAuthorised(OperatorError):
    """The token lacks the role."""

    code = "not_authorised"
    http = 403
    hint = "Use a token with one of the roles that are named (`hub token create`)."


class NotFound(OperatorError):
    """No such model, rollout, spoke or page."""

    code = "not_found"
    http = 404
    hint = "List what there is with the `list` command of the same group."


class ApiRequestInvalid(OperatorError):
    """A request that the API cannot read."""

    code = "api_request_invalid"
    http = 422
    hint = "Correct the field that is named."


class HubClient:
    """A connection to one hub. Use as a context manager."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    @classmethod
    def at(cls, url: str, token: str | None = None, ca: Path | None = None) -> Self:
        """Connect to `url`; `ca` pins the hub's certificate authority (None: the system's)."""
        verify = ssl.create_default_context(cafile=str(ca) if ca else None)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return cls(httpx.Client(base_url=url, headers=headers, verify=verify, timeout=60.0, trust_env=False))

    @classmethod
    def local(cls, home: Path) -> Self:
        """The hub whose home this is, or the one that HUB_URL and HUB_CA name; as HUB_TOKEN, or, at home, as its operator.

        Raises HubUnavailable when it does not run.
        """
        if url := os.environ.get("HUB_URL"):
            ca = os.environ.get("HUB_CA")
            return cls.at(url, os.environ.get("HUB_TOKEN"), Path(ca) if ca else None)
        place = HubHome(home)
        try:
            address = json.loads(place.address.read_text())
            token = os.environ.get("HUB_TOKEN") or place.token.read_text().strip()
        except FileNotFoundError as e:
            raise HubUnavailable(f"no hub runs in {home}") from e
        return cls.at(address["url"], token, Path(address["ca"]))

    def get(self, path: str, **params: Any) -> Any:
        """GET `/api/v1<path>` and return the JSON. Raises the error of the problem's code, or HubUnavailable."""
        return self.send("GET", path, params={k: v for k, v in params.items() if v is not None}).json()

    def post(self, path: str, body: Any = None) -> Any:
        """POST a JSON body."""
        return self.send("POST", path, json=body).json()

    def delete(self, path: str) -> Any:
        """DELETE."""
        return self.send("DELETE", path).json()

    def fetch(self, path: str, body: Any, file: Path) -> int:
        """POST a JSON body and write the answer to `file`, atomically and in pieces; returns the bytes. Raises as `get`."""
        try:
            with self.http.stream("POST", API + path, json=body) as answer:
                if answer.is_error:
                    answer.read()
                    raise _error_of(answer)
                with atomic_file(file, mode=0o600) as out:
                    return sum(out.write(chunk) for chunk in answer.iter_bytes(1 << 20))
        except httpx.TransportError as e:
            raise HubUnavailable(f"the hub at {self.http.base_url} does not answer: {e}") from e

    def ready(self) -> Any:
        """What the hub says of itself at `/readyz`, ready or not. Raises HubUnavailable."""
        try:
            return self.http.get("/readyz").json()
        except httpx.TransportError as e:
            raise HubUnavailable(f"the hub at {self.http.base_url} does not answer: {e}") from e

    def close(self) -> None:
        """Close the connection."""
        self.http.close()

    def send(self, method: str, path: str, content: bytes | None = None, **kwargs: Any) -> httpx.Response:
        """One call below `/api/v1`, with raw bytes where the body is not JSON. Raises as `get`."""
        try:
            answer = self.http.request(method, API + path, content=content, **kwargs)
        except httpx.TransportError as e:
            raise HubUnavailable(f"the hub at {self.http.base_url} does not answer: {e}") from e
        if answer.is_error:
            raise _error_of(answer)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _error_of(answer: httpx.Response) -> SpokeshaveError:
    """The hub's error, as if it had been raised here: class of its code where that is known, else of its family."""
    try:
        problem = answer.json()
        family = catalog().get(problem["code"]) or _FAMILIES[problem["exit"]]
        error = family.__new__(family)
        SpokeshaveError.__init__(error, str(problem["detail"]), hint=problem["hint"])  # leaves may ask for more than that
        vars(error)["code"] = problem["code"]
        return error
    except (ValueError, KeyError, TypeError):
        return HubError(f"the hub answered {answer.status_code} without a problem document")


_FAMILIES = {kind.exit: kind for kind in (SpokeshaveError, OperatorError, AuthorError, RefusedError, HubError, DeviceError)}

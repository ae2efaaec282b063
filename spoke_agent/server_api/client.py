"""How the agent and the command line talk to the serving process: three calls over the control socket."""

import http.client
import socket
from pathlib import Path
from typing import Protocol, TypeVar

from model_formats.core.document import Document
from spoke_agent.server_api.errors import ServerUnreachable
from spoke_agent.server_api.messages import ReconcileAnswer, ServingAnswer, StatsAnswer
from sync.protocol.serving import Serving

__all__ = ["ControlClient", "Serves", "serving_now"]

"""Relative to the spoke's home; mode 0600."""

D = TypeVar("D", bound=Document)
_LONGEST_ANSWER = 4 << 20


class ControlClient:
    """Blocking client of `home/run/control.sock`. Every call raises ServerUnreachable when the process is not there.

    `timeout_s` bounds a reconcile, which loads and measures models; the other calls answer at once. Each call is a connection of
    its own, so the object may be shared by threads and outlives restarts of the server.
    """

    def __init__(self, socket_path: Path, *, timeout_s: float = 120.0) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s

    def reconcile(self) -> ReconcileAnswer:
        """Follow `slots.json` now: load what is new, verify it (digests, golden vectors), swap, let go of what is gone.

        Never raises for a slot that cannot be loaded: that slot's state says why, and the version that answered before goes on.
        """
        return self._call("POST", "/control/reconcile", ReconcileAnswer, self._timeout_s)

    def stats(self) -> StatsAnswer:
        """Counts per model and role."""
        return self._call("GET", "/control/stats", StatsAnswer)

    def serving(self) -> tuple[Serving, ...]:
        """What answers callers right now, with this process's own hash of each mapped file."""
        return self._call("GET", "/control/serving", ServingAnswer).models

    def alive(self) -> bool:
        """Whether the process answers."""
        try:
            return self._ask("GET", "/control/alive", 2.0)[0] == http.HTTPStatus.OK
        except ServerUnreachable:
            return False

    def close(self) -> None:
        """Nothing is held between calls; kept so that callers need not know."""

    def _call(self, method: str, path: str, answer: type[D], timeout_s: float = 10.0) -> D:
        status, body = self._ask(method, path, timeout_s)
        if status != http.HTTPStatus.OK:
            raise ServerUnreachable(f"{path}: status {status}: {body[:500].decode('utf-8', 'replace')}")
        return answer.parse(body)

    def _ask(self, method: str, path: str, timeout_s: float) -> tuple[int, bytes]:
        connection = _UnixConnection(self._path, timeout_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read(_LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as e:
            raise ServerUnreachable(f"{self._path}: {e}") from e
        finally:
            connection.close()


class Serves(Protocol):
    """Whoever knows what is served."""

    def serving(self) -> tuple[Serving, ...]:
        """What answers callers. Raises ServerUnreachable."""


def serving_now(server: Serves) -> tuple[Serving, ...] | None:
    """What answers callers, for reports and status; None while the server is away."""
    try:
        return server.serving()
    except ServerUnreachable:
        return None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("spoke", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """To the socket file instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

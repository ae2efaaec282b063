"""How the agent and the command line talk to the serving process: three calls over the control socket."""

from pathlib import Path
from typing import TypeVar

import httpx

from model_formats.document import Document
from spoke_agent.serve.answers import ReconcileAnswer, ServingAnswer, StatsAnswer
from spoke_agent.serve.errors import ServerUnreachable
from sync.messages import Serving

__all__ = ["CONTROL_SOCKET", "PORT_FILE", "SERVER_SOCKET", "ControlClient"]

CONTROL_SOCKET = "run/control.sock"
"""For the agent, mode 0600; relative to the spoke's home."""
SERVER_SOCKET = "run/server.sock"
"""The inference protocol for programs on the same machine."""
PORT_FILE = "run/server.port"
"""TCP port of the inference protocol, as decimal text, written once it listens."""

D = TypeVar("D", bound=Document)


class ControlClient:
    """Blocking client of `home/run/control.sock`. Every call raises ServerUnreachable when the process is not there.

    `timeout_s` bounds a reconcile, which loads and measures models; the other calls answer at once.
    """

    def __init__(self, socket_path: Path, *, timeout_s: float = 120.0) -> None:
        self._path = socket_path
        self._http = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_path)), base_url="http://spoke", timeout=timeout_s)

    def reconcile(self) -> ReconcileAnswer:
        """Follow `slots.json` now: load what is new, verify it (digests, golden vectors), swap, let go of what is gone.

        Never raises for a slot that cannot be loaded: that slot's state says why, and the version that answered before goes on.
        """
        return self._call("POST", "/control/reconcile", ReconcileAnswer)

    def stats(self) -> StatsAnswer:
        """Counts per model and role."""
        return self._call("GET", "/control/stats", StatsAnswer)

    def serving(self) -> tuple[Serving, ...]:
        """What answers callers right now, with this process's own hash of each mapped file."""
        return self._call("GET", "/control/serving", ServingAnswer).models

    def alive(self) -> bool:
        """Whether the process answers."""
        try:
            return self._http.get("/control/alive", timeout=2).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def _call(self, method: str, path: str, answer: type[D]) -> D:
        try:
            response = self._http.request(method, path)
        except httpx.HTTPError as e:
            raise ServerUnreachable(f"{self._path}: {e}") from e
        if response.status_code != httpx.codes.OK:
            raise ServerUnreachable(f"{path}: status {response.status_code}: {response.text[:500]}")
        return answer.parse(response.content)

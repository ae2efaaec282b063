"""The agent's local socket on this machine: a unix socket (0600) that takes one JSON line and answers with JSON lines.

A question is `{"op": name, ...}`; answers are `{"line": ...}` as many as there are, then `{"done": value}` or `{"error": {...}}`.
"""

import contextlib
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from model_formats.core.errors import DeviceError, SpokeshaveError

__all__ = ["AgentAway", "LocalServer", "LocalCommandRefused", "call_agent"]

Tell = Callable[[object], None]
Op = Callable[[Mapping[str, Any], Tell], object]
"""(question, tell) -> value; `tell` sends a line before the end."""
MAX_LINE = 64 * 1024


class AgentAway(DeviceError):
    """No agent runs on this home."""

    code = "agent_away"
    hint = "Start it with `spoke run`, or go on without it."


class LocalCommandRefused(DeviceError):
    """The agent did not do what it was asked; code, message and exit status are those of its own error."""

    code = "agent_refused"

    def __init__(self, message: str, *, hint: str | None = None, code: str = code, exit_status: int = 6) -> None:
        super().__init__(message, hint=hint)
        self.__dict__.update(code=code, exit=exit_status)


class LocalServer:
    """The agent's end. Each question has a thread of its own."""

    def __init__(self, path: Path, ops: Mapping[str, Op]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        self._path = path
        self._server = _Server(_short(path), ops)
        path.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="local-socket", daemon=True)

    def open(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, ops: Mapping[str, Op]) -> None:
        self.ops = ops
        super().__init__(path, _Handler)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever asked has gone; the work is done anyway
            try:
                question = json.loads(self.rfile.readline(MAX_LINE))
                op = cast("_Server", self.server).ops[question["op"]]
                self._say({"done": op(question, lambda line: self._say({"line": line}))})
            except SpokeshaveError as e:
                self._say({"error": {"code": e.code, "message": e.message, "hint": e.hint, "exit": e.exit}})
            except (ValueError, KeyError, TypeError) as e:
                self._say({"error": {"code": "agent_refused", "message": f"not a question: {e}", "hint": "", "exit": 2}})

    def _say(self, value: object) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")


def call_agent(local_server: Path, op: str, **params: object) -> Iterator[object]:
    """Ask the agent; yields its lines, the last one being the value. Raises AgentAway, LocalCommandRefused."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as line:
        try:
            line.connect(_short(local_server))
        except OSError as e:
            raise AgentAway(f"{local_server}: {e.strerror or e}") from e
        line.sendall(json.dumps({"op": op, **params}).encode() + b"\n")
        with line.makefile("rb") as answers:
            for raw in answers:
                answer = json.loads(raw)
                if "error" in answer:
                    raise _as_error(answer["error"])
                if "done" in answer:
                    yield answer["done"]
                    return
                yield answer["line"]
    raise AgentAway(f"{local_server}: the agent stopped in the middle of its answer")


def _as_error(told: Mapping[str, Any]) -> LocalCommandRefused:
    return LocalCommandRefused(told["message"], hint=told["hint"], code=told["code"], exit_status=told["exit"])


def _short(path: Path) -> str:
    """Socket addresses are at most 107 bytes; a path relative to here is often shorter."""
    full = str(path)
    return full if len(full.encode()) < 108 else os.path.relpath(full)

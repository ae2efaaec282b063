"""`spoke run`: agent and server as two processes. If one ends it is started again; the other goes on."""

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_formats.core.errors import DeviceError
from model_formats.core.files import atomic_write
from model_formats.core.log_event import LogEvent
from spoke_agent.server_api.client import ControlClient
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.restart import FINAL_STATUS, RestartPolicy

__all__ = ["Child", "ServerSilent", "Supervisor", "borrowed_server", "commands"]


class ServerSilent(DeviceError):
    """`spoke serve` was started and does not answer."""

    code = "server_silent"
    hint = "Run `spoke serve` by hand and see what it says."


log = logging.getLogger(__name__)
GRACE_S = 15.0
START_S = 60.0


@dataclass(slots=True)
class Child:
    """One of the two processes."""

    name: str
    argv: Sequence[str]
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    due: float = field(default=0.0)


def commands(home: Path, *, agent: Sequence[str] = (), serve: Sequence[str] = ()) -> dict[str, list[str]]:
    """How the two processes are started."""
    program = [sys.executable, "-m", "spoke_agent", "--home", str(home)]
    return {"server": [*program, "serve", *serve], "agent": [*program, "agent", *agent]}


class Supervisor:
    """Starts, watches, restarts; passes SIGTERM and SIGINT on. `run` returns the exit status."""

    def __init__(self, run: Path, children: Mapping[str, Sequence[str]]) -> None:
        """`run`: folder for `<name>.pid` files."""
        self._run = run
        self._children = {name: Child(name, argv) for name, argv in children.items()}
        self._events: queue.SimpleQueue[tuple[Child, int] | None] = queue.SimpleQueue()
        self._stopping = False

    def run(self) -> int:
        """Until a signal, or until a process ends in a way that a restart cannot mend."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        try:
            for child in self._children.values():
                self._start(child)
            return self._watch()
        finally:
            self._end_all()

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping = True
        self._events.put(None)

    def _watch(self) -> int:
        while not self._stopping:
            try:
                event = self._events.get(timeout=self._next_due())
            except queue.Empty:
                event = None
            if event is not None and (status := self._fallen(*event)) is not None:
                return status
            for child in self._children.values():
                if child.process is None and not self._stopping and time.monotonic() >= child.due:
                    self._start(child)
        return 0

    def _fallen(self, child: Child, status: int) -> int | None:
        child.process = None
        if self._stopping:
            return None
        if status == FINAL_STATUS:
            log.error(LogEvent.SUPERVISE_FINAL, extra={"part": child.name, "status": status})
            return status
        pause = child.restart.pause_s(time.monotonic() - child.started)
        child.due = time.monotonic() + pause
        log.warning(LogEvent.SUPERVISE_FALLEN, extra={"part": child.name, "status": status, "pause_s": pause})
        return None

    def _next_due(self) -> float | None:
        waiting = [child.due for child in self._children.values() if child.process is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _start(self, child: Child) -> None:
        child.process = subprocess.Popen(child.argv, stdin=subprocess.DEVNULL, start_new_session=True)
        child.started = time.monotonic()
        atomic_write(self._run / f"{child.name}.pid", str(child.process.pid).encode())
        threading.Thread(target=self._await, args=(child, child.process), daemon=True).start()

    def _await(self, child: Child, process: "subprocess.Popen[bytes]") -> None:
        self._events.put((child, process.wait()))

    def _end_all(self) -> None:
        self._stopping = True
        running = [child.process for child in self._children.values() if child.process is not None]
        for process in running:
            _send(process, signal.SIGTERM)
        for process in running:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                _send(process, signal.SIGKILL)
                process.wait()
        for child in self._children.values():
            (self._run / f"{child.name}.pid").unlink(missing_ok=True)


@contextlib.contextmanager
def borrowed_server(home: SpokeHome) -> Iterator[None]:
    """A server for as long as it takes: the one that runs, or one of our own on the unix sockets only. Raises ServerSilent."""
    server = ControlClient(home.control_socket, timeout_s=5)
    if server.alive():
        yield
        return
    child = subprocess.Popen(commands(home.root, serve=["--no-tcp"])["server"], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        _await_alive(server, child)
        yield
    finally:
        _send(child, signal.SIGTERM)
        child.wait(GRACE_S)


def _await_alive(server: ControlClient, child: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while not server.alive():
        if child.poll() is not None or time.monotonic() > deadline:
            raise ServerSilent("the server does not start")
        time.sleep(0.05)


def _send(process: "subprocess.Popen[bytes]", number: int) -> None:
    if process.poll() is None:
        os.kill(process.pid, number)

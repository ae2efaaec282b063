"""`spoke serve --workers N`: server processes on one port, and the parent that starts them and speaks for them.

The kernel deals TCP connections to the workers (SO_REUSEPORT); the unix socket is one, accepted by whoever is free. Each worker
is a whole server of its own: sessions, batchers, capture, following `slots.json`. They share the memory ceiling and the capture
budget evenly. The parent serves no model: it holds the lock of the home and the control socket, passes a reconcile on to one
worker after the other, and tells their counts as sums. A worker that ends is started anew; one that ends as no restart can mend
ends them all.
Source: socket(7), SO_REUSEPORT.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from model_formats.core.errors import SpokeshaveError
from model_formats.core.files import atomic_write
from model_formats.core.log_event import LogEvent
from model_formats.core.logging import log_loop_fault
from spoke_agent.server.app.control import answering, log_fault
from spoke_agent.server.handlers.aggregate import all_reconciled, all_stats
from spoke_agent.server.http.transport import HttpLimits, HttpServer
from spoke_agent.server.settings import ServeSettings
from spoke_agent.server_api.client import ControlClient
from spoke_agent.server_api.errors import ServerUnreachable
from spoke_agent.server_api.messages import ReconcileAnswer, ServingAnswer, StatsAnswer
from spoke_agent.site.restart import FINAL_STATUS, RestartPolicy

__all__ = ["Workers", "settings_from", "settings_text"]

log = logging.getLogger("spoke.serve")
_GRACE_S: Final = 10.0
D = TypeVar("D")


class Workers:
    """The parent. `start` returns when every worker serves; `stop` when all have ended. Inside a running loop."""

    def __init__(self, settings: ServeSettings, *, ended: Callable[[int], None]) -> None:
        """`ended`: told the exit status when a worker ended as no restart can mend."""
        self.settings = settings
        self.home = settings.folder
        self._ended = ended
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._restarts = [RestartPolicy() for _ in range(settings.workers)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._stopping = False
        routes = MappingProxyType(
            {
                (b"POST", b"/control/reconcile"): self._reconcile,
                (b"GET", b"/control/stats"): self._stats,
                (b"GET", b"/control/serving"): self._serving,
            }
        )
        self._control = HttpServer(
            answering(routes, log_fault), HttpLimits(connections=64, body_bytes=1 << 20), on_fault=log_fault
        )

    async def start(self) -> None:
        """Reserve the ports, listen on the unix sockets, start the workers one after the other."""
        settings = self.settings
        port = self._reserved(settings.port)
        grpc_port = self._reserved(settings.grpc_port)
        self._unix = _listening(self.home.server_socket)
        self._sockets.append(self._unix)
        self.settings = replace(settings, port=port, grpc_port=grpc_port)
        for number in range(settings.workers):
            if not self._stopping:
                await self._start(number)
        await self._control.listen_unix(str(self.home.control_socket))
        self.home.control_socket.chmod(0o600)
        for path, found in ((self.home.server_port, port), (self.home.grpc_port, grpc_port)):
            if found is not None:
                atomic_write(path, str(found).encode())
        log.info(LogEvent.SERVE_POOL_STARTED, extra={"port": port, "workers": settings.workers})

    async def stop(self) -> None:
        """Let every worker answer what it took."""
        self._stopping = True
        for path in (self.home.server_port, self.home.grpc_port, self.home.server_socket, self.home.control_socket):
            path.unlink(missing_ok=True)
        await self._control.stop(grace_s=0)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await asyncio.gather(*(self._end(p) for p in self._processes.values()))
        for task in self._tasks:
            task.cancel()
        for held in self._sockets:
            held.close()

    async def reconcile(self) -> ReconcileAnswer:
        """Have every worker follow `slots.json`, one after the other, so that they do not load all at once."""
        return all_reconciled(await self._asked(lambda client: client.reconcile()))

    # ---- the workers

    async def _start(self, number: int) -> None:
        """Start one, and wait until it serves or has ended."""
        command = [sys.executable, "-m", "spoke_agent.server.app.worker_process", str(number), str(self._unix.fileno())]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, pass_fds=(self._unix.fileno(),))
        self._processes[number] = process
        assert process.stdin is not None  # noqa: S101 - asked for
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(settings_text(replace(self.settings, worker=number)))  # it stays open: its end is our end
        with contextlib.suppress(ConnectionError):  # it fell at once: told below
            await process.stdin.drain()
        await process.stdout.readline()
        self._keep(self._watched(number, process))

    async def _watched(self, number: int, process: asyncio.subprocess.Process) -> None:
        """Until it ends; then a new one takes its place, at once or after a pause that grows as long as it falls again."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        status = await process.wait()
        if self._stopping:
            return
        if status == FINAL_STATUS:
            self._stopping = True
            self._ended(status)
            return
        pause = self._restarts[number].pause_s(loop.time() - started)
        log.warning(LogEvent.SERVE_WORKER_FALLEN, extra={"worker": number, "status": status, "pause_s": pause})
        await asyncio.sleep(pause)
        if not self._stopping:
            await self._start(number)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            await asyncio.wait_for(process.wait(), self.settings.drain_s + _GRACE_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- speaking for them

    async def _asked(self, ask: Callable[[ControlClient], D]) -> Sequence[D]:
        """The answers of those that are there. Raises ServerUnreachable when none is."""
        loop, found = asyncio.get_running_loop(), []
        for number in range(self.settings.workers):
            client = ControlClient(self.home.worker_socket(number))
            with contextlib.suppress(ServerUnreachable):  # on its way back: it follows slots.json when it starts
                found.append(await loop.run_in_executor(None, ask, client))
        if not found:
            raise ServerUnreachable("no worker answers")
        return found

    async def _reconcile(self) -> ReconcileAnswer:
        return await self.reconcile()

    async def _stats(self) -> StatsAnswer:
        return all_stats(await self._asked(lambda client: client.stats()))

    async def _serving(self) -> ServingAnswer:
        return ServingAnswer(models=(await self._asked(lambda client: client.serving()))[0])

    def _reserved(self, port: int | None) -> int | None:
        """Hold a port for the workers, without listening: only sockets that listen are dealt connections."""
        if port is None:
            return None
        family = socket.AF_INET6 if ":" in self.settings.host else socket.AF_INET
        held = socket.socket(family, socket.SOCK_STREAM)
        self._sockets.append(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((self.settings.host, port))
        return int(held.getsockname()[1])


def settings_text(settings: ServeSettings) -> bytes:
    """Settings as one line, for a worker."""
    return msgspec.json.encode(settings, enc_hook=str) + b"\n"


def settings_from(line: bytes) -> ServeSettings:
    """The settings of one line."""
    return msgspec.json.decode(line, type=ServeSettings, dec_hook=lambda _, path: Path(path))


def _listening(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        found.bind(str(path))
    finally:
        os.umask(before)
    found.listen(1024)
    found.settimeout(0)
    return found


async def run_workers(settings: ServeSettings, ready: Callable[[Workers], None] | None) -> int:
    """Until SIGTERM or SIGINT, or until a worker ended for good; returns the exit status."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_fault)
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    workers = Workers(settings, ended=end)
    tasks: set[asyncio.Future[Any]] = set()

    def follow() -> None:
        task: asyncio.Future[Any] = asyncio.ensure_future(_quiet(workers.reconcile()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    try:
        await workers.start()
        loop.add_signal_handler(signal.SIGHUP, follow)
        if ready is not None and not ended.done():
            ready(workers)
        return await ended
    finally:
        await workers.stop()


async def _quiet(work: Awaitable[Any]) -> None:
    try:
        await work
    except SpokeshaveError as e:
        log.error(LogEvent.SERVE_SLOTS_UNREADABLE, extra={"error": e.message})  # each worker's health says so too

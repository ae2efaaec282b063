"""The serving process put together: sockets, models, capture, control; start reading here.

It needs no agent, no hub and no network: it serves what `slots.json` says, and follows it when it is told to (`POST
/control/reconcile`, or SIGHUP). The order of a start: the lock of the home, the sockets (health answers at once), the models, the
store of captured rows, `run/server.port`. One of several workers opens its sockets last: the kernel deals it callers as soon as
they are open, and until it has its models the others answer.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_formats.core.errors import OperatorError, SpokeshaveError
from model_formats.core.file_lock import FileLock
from model_formats.core.files import atomic_write
from model_formats.core.log_event import LogEvent
from model_formats.core.logging import log_loop_fault
from spoke_agent.server.app.control import Control, log_fault
from spoke_agent.server.caches import RequestCaches
from spoke_agent.server.handlers.peers import PeerWorkers
from spoke_agent.server.handlers.tracing import Tracing, find_tracing
from spoke_agent.server.http.access_log import log_answer
from spoke_agent.server.http.transport import Exchange, HttpLimits, HttpServer
from spoke_agent.server.models.capture import Capture, RowStore
from spoke_agent.server.models.model_set import ModelSet
from spoke_agent.server.rest.routes import Routes
from spoke_agent.server.settings import ServeSettings
from spoke_agent.site.memory import release_unused
from sync.store import BlobStore

if TYPE_CHECKING:
    from spoke_agent.server.grpc.server import GrpcServer

__all__ = ["GrpcMissing", "InferenceServer", "ServeRefused", "serve", "serve_many"]

log = logging.getLogger("spoke.serve")
_LONGEST_SOCKET_PATH = 107
_OWN_FILES = 256
_SWITCH_S = 0.0005
"""How long a thread of ours (loading, capture) may keep the interpreter from the loop; Python's 5 ms shows in callers' p99. With
gRPC's threads beside the loop it stays at Python's: turns that short cost each of its calls a tenth more.
"""


class ServeRefused(OperatorError):
    """The server cannot start as it is told to."""

    code = "serve_refused"
    hint = "Stop the other server, or correct the setting that is named."


class GrpcMissing(OperatorError):
    """gRPC is asked for, but its library is not installed."""

    code = "grpc_extra_missing"
    hint = "Install the extra: pip install 'spokeshave[grpc]'; or start without --grpc-port and serve_grpc_port."


class InferenceServer:
    """One serving process. Create it and call `start` inside a running loop."""

    def __init__(self, settings: ServeSettings, *, shared: socket.socket | None = None) -> None:
        """`shared`: for one of several workers, the unix socket that they all accept on."""
        self.settings = settings = settings if settings.worker is None else settings.share
        self._shared = shared
        self.home = settings.folder
        self.port: int | None = None
        self.grpc_port: int | None = None
        self.home.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(self.home.run / "server.lock") if settings.worker is None else None  # else the parent holds it
        self.capture = self._capture() if settings.capture else None
        watcher = self.capture.watch if self.capture is not None else None
        self.models = ModelSet(settings, BlobStore(self.home.store), watcher=watcher)
        token = _token(settings)
        peers = _peers(settings)
        caches = RequestCaches.of(settings.caches)
        local = Routes(self.models, self.capture, templates=caches.templates, peers=peers)
        guarded = Routes(self.models, self.capture, templates=caches.templates, token=token, peers=peers)
        tracing = find_tracing()
        self._grpc = _grpc(settings, self.models, peers, token, tracing) if settings.grpc_port is not None else None
        seen = _seen(settings, tracing)
        self._local = HttpServer(local.handle, settings.limits, on_fault=log_fault, on_answer=seen, heads=caches.heads)
        self._tcp = HttpServer(guarded.handle, settings.limits, on_fault=log_fault, on_answer=seen, heads=caches.heads)
        control = Control(self.models, self.capture, on_fault=log_fault)
        self._control = HttpServer(control.handle, HttpLimits(connections=64, body_bytes=1 << 20), on_fault=log_fault)

    async def start(self) -> None:
        """Listen, then load; a worker the other way round. A slot that cannot be loaded does not stop the rest."""
        await _listen_unix(self._control, _control_socket(self.settings), 0o600)
        if self._shared is None:
            await _listen_unix(self._local, self.home.server_socket, 0o660)
            await self._listen()
        await self._load()
        if self._shared is not None:
            await self._local.listen_shared(self._shared)
            await self._listen()
        if self._lock is not None:
            for path, port in ((self.home.server_port, self.port), (self.home.grpc_port, self.grpc_port)):
                if port is not None:
                    atomic_write(path, str(port).encode())
        log.info(LogEvent.SERVE_STARTED, extra={"port": self.port, "models": ",".join(self.models.live)})

    async def _load(self) -> None:
        release_unused()
        try:
            await self.models.reconcile()
        except SpokeshaveError as e:
            log.error(
                LogEvent.SERVE_SLOTS_UNREADABLE, extra={"error": e.message}
            )  # health says so too, and the agent can put it right
        if self.capture is not None:
            release_unused()  # each library makes room for the next: the most a start takes is what counts on a small machine
            await asyncio.get_running_loop().run_in_executor(None, self.capture.open)
        _settle()

    async def stop(self) -> None:
        """Answer what was taken, write what was captured, go."""
        if self._lock is not None:
            self.home.server_port.unlink(missing_ok=True)
            self.home.grpc_port.unlink(missing_ok=True)
        if self._grpc is not None:
            await self._grpc.stop(grace_s=self.settings.drain_s)
        await asyncio.gather(*(s.stop(grace_s=self.settings.drain_s) for s in (self._tcp, self._local, self._control)))
        await self.models.close()
        if self.capture is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.capture.close)
        _control_socket(self.settings).unlink(missing_ok=True)
        if self._lock is not None:
            self.home.server_socket.unlink(missing_ok=True)
            self._lock.release()

    async def _listen(self) -> None:
        if self.settings.port is not None:
            self.port = await self._listen_tcp(self.settings.port)
        if self._grpc is not None and self.settings.grpc_port is not None:
            self.grpc_port = self._listen_grpc(self._grpc, self.settings.grpc_port)

    async def _listen_tcp(self, port: int) -> int:
        settings = self.settings
        try:
            return await self._tcp.listen_tcp(settings.host, port, tls=_tls(settings), reuse_port=settings.worker is not None)
        except OSError as e:
            raise ServeRefused(f"cannot listen on {settings.host} port {port}: {e.strerror or e}") from e

    def _listen_grpc(self, server: "GrpcServer", port: int) -> int:
        settings = self.settings
        try:
            return server.listen(settings.host, port, certificate=settings.tls_certificate, key=settings.tls_key)
        except OSError as e:
            raise ServeRefused(f"cannot serve gRPC on {settings.host} port {port}: {e}") from e

    def _capture(self) -> Capture:
        settings = self.settings
        return Capture(
            _store_opener(settings.home), rows_s=settings.capture_rows_s, burst=settings.capture_burst, on_fault=_capture_fault
        )


def serve(
    settings: ServeSettings,
    *,
    ready: Callable[[InferenceServer], None] | None = None,
    shared: socket.socket | None = None,
    parent: int | None = None,
) -> None:
    """Run until SIGTERM or SIGINT. `ready` is called once it serves.

    One of several workers has the unix socket they share, and ends when the file `parent` does.
    """
    if settings.grpc_port is None:
        sys.setswitchinterval(_SWITCH_S)
    _open_files(settings.limits.connections)
    _run(_serve(settings, ready, shared, parent))


def serve_many(settings: ServeSettings, *, ready: Callable[[int | None], None] | None = None) -> int:
    """Run `settings.workers` server processes until SIGTERM or SIGINT; returns the exit status. `ready` is told the port."""
    from spoke_agent.server.app.worker_pool import run_workers

    settings.folder.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    _token(settings), _tls(settings)  # told here, once, not by every worker
    lock = _locked(settings.folder.run / "server.lock")
    try:
        return asyncio.run(run_workers(settings, None if ready is None else lambda w: ready(w.settings.port)))
    except OSError as e:
        raise ServeRefused(f"cannot listen on {settings.host} port {settings.port}: {e.strerror or e}") from e
    finally:
        lock.release()


async def _serve(
    settings: ServeSettings, ready: Callable[[InferenceServer], None] | None, shared: socket.socket | None, parent: int | None
) -> None:
    server = InferenceServer(settings, shared=shared)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.set_exception_handler(log_loop_fault)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if parent is not None:
        loop.add_reader(parent, ended.set)
    try:
        await server.start()
        tasks: set[asyncio.Future[Any]] = set()
        loop.add_signal_handler(signal.SIGHUP, lambda: tasks.add(asyncio.ensure_future(server.models.reconcile())))
        if ready is not None:
            ready(server)
        await ended.wait()
    finally:
        await server.stop()


def _run(main: Coroutine[Any, Any, None]) -> None:
    """With uvloop where it is installed: a third more requests a second."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
        return
    uvloop.run(main)


async def _listen_unix(server: HttpServer, path: Path, mode: int) -> None:
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ServeRefused(
            f"{path}: longer than the {_LONGEST_SOCKET_PATH} bytes a unix socket may have", hint="Choose a shorter --home."
        )
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - at start
    before = os.umask(0o777 & ~mode)
    try:
        await server.listen_unix(str(path))
    finally:
        os.umask(before)


def _open_files(connections: int) -> None:
    """A file for each connection of both doors, as far as the machine allows: the usual 1024 are fewer than we take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OWN_FILES
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _settle() -> None:
    """What is loaded stays: keep it out of garbage collections, and give back what loading took and no longer needs.

    Nothing is collected before: a start leaves a few objects in circles, and looking for them costs the first callers 30 ms.
    """
    gc.freeze()
    gc.enable()
    release_unused()


def _control_socket(settings: ServeSettings) -> Path:
    """The control socket; with several workers the parent has that one, and each of them its own."""
    home = settings.folder
    return home.control_socket if settings.worker is None else home.worker_socket(settings.worker)


def _peers(settings: ServeSettings) -> PeerWorkers | None:
    if settings.worker is None or settings.workers < 2:
        return None
    return PeerWorkers([settings.folder.worker_socket(n) for n in range(settings.workers) if n != settings.worker])


def _locked(path: Path) -> FileLock:
    return FileLock(path, busy=ServeRefused(f"another server already serves {path.parent.parent}"))


def _token(settings: ServeSettings) -> bytes | None:
    if settings.token_file is None:
        return None
    token = settings.token_file.read_bytes().strip()
    if len(token) < 16:
        raise ServeRefused(f"{settings.token_file}: a token needs at least 16 characters")
    return token


def _tls(settings: ServeSettings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as e:
        raise ServeRefused(f"{settings.tls_certificate}: not a usable certificate and key: {e}") from e
    return context


def _seen(settings: ServeSettings, tracing: Tracing | None) -> Callable[[Exchange, int, int], None] | None:
    """Who is told of each answer; None costs nothing."""
    if tracing is None:
        return log_answer if settings.access_log else None
    if not settings.access_log:
        return tracing.http

    def both(exchange: Exchange, status: int, size: int) -> None:
        log_answer(exchange, status, size)
        tracing.http(exchange, status, size)

    return both


def _grpc(
    settings: ServeSettings, models: ModelSet, peers: PeerWorkers | None, token: bytes | None, tracing: Tracing | None
) -> "GrpcServer":
    """Late and only when asked for: the library takes 12 MB and starts threads."""
    try:
        from spoke_agent.server.grpc.server import GrpcServer
        from spoke_agent.server.grpc.service import Service
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        raise GrpcMissing(f"--grpc-port: the library for gRPC is not installed ({e.name})") from e
    seen = tracing.rpc if tracing is not None else None
    several = settings.worker is not None
    return GrpcServer(
        Service(models, peers), body_bytes=settings.limits.body_bytes, token=token, on_answer=seen, reuse_port=several
    )


def _store_opener(home: Path) -> Callable[[], RowStore]:
    def opened() -> RowStore:
        from spoke_agent.data.store import open_data  # late: a server that captures nothing needs no cryptography

        return open_data(home, regime=_regime(home))

    return opened


def _regime(home: Path) -> str:
    """Rows are tagged with the site's regime; before enrolment there is none."""
    from provisioning.identity.document import IdentityDocument

    try:
        return IdentityDocument.parse((home / "identity" / "identity.json").read_bytes()).regime
    except (OSError, SpokeshaveError):
        return "none"


def _capture_fault(error: Exception) -> None:
    log.error(LogEvent.SERVE_CAPTURE_FAULT, extra={"error": error})

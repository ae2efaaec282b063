"""HTTP/1.1 on bare asyncio: one `Protocol` a connection, llhttp (httptools) for the grammar, strict limits for everything else.

A handler is a plain function that is given an `Exchange` and answers it now or later, with no task or future in between. Answers
of pipelined requests go out in the order of their requests. Nothing here knows what is served.

Limits: size of head and body, number of connections, pipelined requests; a deadline for each of: sending a head (slowloris),
sending a body, an idle connection, taking the answer (a client that never reads). One sweep a second looks at the deadlines.
"""

import asyncio
import contextlib
import socket
import ssl
import time
import zlib
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import httptools
from msgspec import Struct

from spoke_agent.server.caches.head_cache import NO_HEAD, HeadCache, RequestHead
from spoke_agent.server.protocol.json_codec import error_body

__all__ = ["Exchange", "Handler", "HttpLimits", "HttpServer"]

JSON: Final = b"application/json"
_PHRASES: Final = {int(status): status.phrase.encode() for status in HTTPStatus}
_CODINGS: Final = {b"gzip": 31, b"deflate": 15}
"""Content coding -> zlib window bits (gzip, and deflate as a zlib stream)."""
_WORTH_PACKING: Final = 256
_now = time.monotonic
"""Of the same clock as the loop's, which knows only milliseconds where it is uvloop's."""


class HttpLimits(Struct, frozen=True):
    """What one client may take. Sizes in bytes, times in seconds."""

    head_bytes: int = 32 * 1024
    headers: int = 100
    body_bytes: int = 64 << 20
    connections: int = 2000
    pipelined: int = 64
    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 120.0
    write_s: float = 30.0
    linger_s: float = 2.0


class Exchange:
    """One request and its answer."""

    __slots__ = ("_answer", "_connection", "body", "caller", "headers", "keep_alive", "method", "path", "started")

    def __init__(self, connection: "_Connection", head: RequestHead) -> None:
        self._connection = connection
        self._answer: bytes | None = None
        self.method = head.method
        self.path = head.path
        self.headers = head.headers
        self.keep_alive = head.keep_alive
        self.body = b""
        self.caller = 0
        """Equal for requests of one connection; 0 for those that came together with one before them."""
        self.started = 0.0
        """Monotonic time at which the request was complete."""

    @property
    def client(self) -> str:
        """Address of the caller; `unix` on the unix socket."""
        transport = self._connection.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"

    def reply(self, status: int, body: bytes, *, content_type: bytes = JSON, extra: bytes = b"") -> None:
        """Answer. `extra` is further header lines, each with its line end. A second answer to the same request is ignored."""
        if self._answer is not None:
            return
        if len(body) >= _WORTH_PACKING:
            coding = self.headers.get(b"accept-encoding", b"")
            if coding in _CODINGS:
                body, extra = _pack(body, coding), b"%sContent-Encoding: %s\r\n" % (extra, coding)
        if not self.keep_alive:
            extra += b"Connection: close\r\n"
        self._answer = b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n%s" % (
            status,
            _PHRASES[status],
            content_type,
            len(body),
            extra,
            b"" if self.method == b"HEAD" else body,
        )
        connection = self._connection
        if connection.server.on_answer is not None:
            connection.server.on_answer(self, status, len(body))
        connection.answered(self)

    def refuse(self, status: int, message: str, *, extra: bytes = b"") -> None:
        """Answer with the protocol's error shape."""
        self.reply(status, error_body(message), extra=extra)


Handler = Callable[[Exchange], None]


class HttpServer:
    """Listens on TCP and unix sockets with one handler and one set of limits. Create it inside a running loop."""

    def __init__(
        self,
        handler: Handler,
        limits: HttpLimits | None = None,
        *,
        on_fault: Callable[[Exception], None] | None = None,
        on_answer: Callable[[Exchange, int, int], None] | None = None,
        heads: HeadCache | None = None,
    ) -> None:
        """`on_answer` sees every answer as it goes out: the exchange, its status, bytes of its body."""
        self.handler = handler
        self.limits = limits or HttpLimits()
        self.on_fault = on_fault
        self.on_answer = on_answer
        self.loop = asyncio.get_running_loop()
        self.heads = HeadCache() if heads is None else heads
        self.now = self.loop.time()
        """Loop time at the last sweep: exact enough for deadlines, and free to read."""
        self.connections: set[_Connection] = set()
        self.refused_connections = 0
        self.draining = False
        self._servers: list[asyncio.AbstractServer] = []
        self._sweep_s = min(1.0, self.limits.head_s / 4, self.limits.body_s / 4, self.limits.idle_s / 4, self.limits.write_s / 4)
        self._sweep: asyncio.TimerHandle = self.loop.call_later(self._sweep_s, self._swept)

    async def listen_tcp(self, host: str, port: int, *, tls: ssl.SSLContext | None = None, reuse_port: bool = False) -> int:
        """Start on TCP; returns the port (port 0 takes a free one)."""
        server = await self.loop.create_server(
            lambda: _Connection(self), host, port, ssl=tls, reuse_port=reuse_port or None, backlog=1024
        )
        self._servers.append(server)
        found: int = server.sockets[0].getsockname()[1]
        return found

    async def listen_unix(self, path: str) -> None:
        """Start on a unix socket; the caller sees to the file and its mode."""
        self._servers.append(await self.loop.create_unix_server(lambda: _Connection(self), path, backlog=1024))

    async def listen_shared(self, shared: socket.socket) -> None:
        """Start on a listening unix socket that other processes accept on too."""
        self._servers.append(await self.loop.create_unix_server(lambda: _Connection(self), sock=shared))

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Accept nothing new, let answers under way go out (at most `grace_s`), then close."""
        self.draining = True
        self._sweep.cancel()
        for server in self._servers:
            server.close()
        end = self.loop.time() + grace_s
        while any(c.busy for c in self.connections) and self.loop.time() < end:  # noqa: ASYNC110 - many, and only at the end
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)

    def _swept(self) -> None:
        self.now = now = self.loop.time()
        for connection in [c for c in self.connections if now > c.deadline]:
            connection.expire()
        self._sweep = self.loop.call_later(self._sweep_s, self._swept)


class _Connection(asyncio.Protocol):
    """States: between requests, in a head (`_in_head`), in a body (`_current`), lingering before the end."""

    __slots__ = (
        "_big",
        "_body",
        "_broken",
        "_completed",
        "_current",
        "_data",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_inflate",
        "_lingering",
        "_parser",
        "_path",
        "_pending",
        "_reading",
        "_received",
        "_written_out",
        "deadline",
        "server",
        "transport",
    )

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.transport: Any = None
        self.deadline = 0.0
        self._parser: Any = None
        self._pending: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._data: bytes | None = None
        self._in_head = False
        self._head_bytes = 0
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._big = False
        self._completed = 0
        self._received = 0
        self._body: list[bytes] = []
        self._inflate: Any = None
        self._lingering = False
        self._broken = False
        self._written_out = True
        self._reading = True

    @property
    def busy(self) -> bool:
        """Whether an answer is owed or still on its way out."""
        return bool(self._pending) or not self._written_out

    # ---- asyncio's calls

    def connection_made(self, transport: Any) -> None:
        """Take the connection, or turn it away when there are too many."""
        self.transport = transport
        server = self.server
        if len(server.connections) >= server.limits.connections or server.draining:
            server.refused_connections += 1
            body = error_body("the server has as many connections as it takes; try again later")
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            transport.close()
            self._lingering = True
            return
        server.connections.add(self)
        if transport.get_extra_info("sslcontext") is None:  # what TLS has of its own in the buffer would stop us
            transport.set_write_buffer_limits(high=0)  # an answer goes out now, not after what its handler still has to count
        self._parser = httptools.HttpRequestParser(self)
        self.deadline = server.now + server.limits.head_s

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it; answers still owed go nowhere."""
        self.server.connections.discard(self)
        self.transport = None
        self._pending.clear()

    def data_received(self, data: bytes) -> None:
        """Take a request whose head is known as it is; feed the parser with all else."""
        if self._lingering:
            return
        self._completed = 0
        self._data = None
        if not self._in_head and self._current is None:
            request = self.server.heads.split(data) if not self._pending else None
            if request is not None:
                head, body = request
                self._hand_over(Exchange(self, head), body)
                return
            self._data = data
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._big = len(data) > self.server.limits.head_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_after_answers()
        except httptools.HttpParserError as e:
            cause = e.__context__
            if isinstance(cause, _Refused):
                self._fail(cause.status, cause.message)
            else:
                self._fail(400, f"not HTTP/1.1: {e}")
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes <= self.server.limits.head_bytes:
                return
            self._fail(431, f"the request's head is longer than {self.server.limits.head_bytes} bytes")

    def eof_received(self) -> bool:
        """The client sends no more. What it is owed still goes out (a half-closed socket), then the connection ends."""
        if self._pending:
            self._end_after_answers()
            return True
        return False

    def pause_writing(self) -> None:
        """The client does not read: take nothing more from it, and not for ever."""
        self._written_out = False
        self.deadline = self.server.now + self.server.limits.write_s
        self._pause()

    def resume_writing(self) -> None:
        """It reads again."""
        self._written_out = True
        self.deadline = self.server.now + self.server.limits.idle_s
        if len(self._pending) < self.server.limits.pipelined:
            self._resume()

    # ---- httptools' calls

    def on_message_begin(self) -> None:
        """A new request."""
        self._in_head = True
        self._path, self._headers = b"", {}
        self._received = self._head_bytes = 0
        self._inflate = None
        self.deadline = self.server.now + self.server.limits.head_s

    def on_url(self, url: bytes) -> None:
        """Path and query, perhaps in pieces."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Judge the head before any body is taken."""
        self._in_head = False
        limits, headers, parser = self.server.limits, self._headers, self._parser
        head = RequestHead(parser.get_method(), self._path, headers, keep_alive=parser.should_keep_alive())
        self._current = Exchange(self, head)
        if len(headers) > limits.headers or (self._big and _size(head) > limits.head_bytes):
            raise _Refused(431, f"more than {limits.headers} headers, or more than {limits.head_bytes} bytes of them")
        if head.body_bytes > limits.body_bytes:
            raise _Refused(413, f"Content-Length is {head.body_bytes}, more than the {limits.body_bytes} bytes allowed")
        if b"content-encoding" in headers:
            self._inflate = _inflater(headers[b"content-encoding"])
        if b"expect" in headers and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._data is not None:  # nothing else has begun in it
            self.server.heads.remember(self._data, head)
            self._data = None
        self.deadline = self.server.now + limits.body_s

    def on_body(self, data: bytes) -> None:
        """A piece of the body, unpacked and counted."""
        if self._inflate is not None:
            data = self._unpack(data)
        self._received += len(data)
        if self._received > self.server.limits.body_bytes:
            raise _Refused(413, f"the body is longer than the {self.server.limits.body_bytes} bytes allowed")
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole: hand it over."""
        exchange = self._current
        assert exchange is not None  # noqa: S101 - a message has a head
        self._current = None
        if self._inflate is not None and not self._inflate.eof:
            raise _Refused(400, "the compressed body ends too early")
        body = self._body
        self._body = []
        self._hand_over(exchange, body[0] if len(body) == 1 else b"".join(body))

    def _hand_over(self, exchange: Exchange, body: bytes) -> None:
        server = self.server
        exchange.body = body
        if server.draining:
            exchange.keep_alive = False
        exchange.started = _now()
        exchange.caller = 0 if self._completed else id(self)
        self._completed += 1
        self.deadline = server.now + server.limits.idle_s
        self._pending.append(exchange)
        if len(self._pending) >= server.limits.pipelined:
            self._pause()
        try:
            server.handler(exchange)
        except Exception as e:  # noqa: BLE001 - the last line of defence: a fault must not take the server or other callers down
            if server.on_fault is not None:
                server.on_fault(e)
            exchange.refuse(500, "internal fault; the server's log has the details")

    # ---- answers

    def answered(self, exchange: Exchange) -> None:
        """Send what is ready, in order."""
        pending, transport = self._pending, self.transport
        if transport is None:
            return
        if len(pending) == 1 and pending[0] is exchange:
            pending.clear()
            transport.write(exchange._answer)
            if not exchange.keep_alive:
                self._linger()
        else:
            self._send_ready()
        if not self._reading and self._written_out and len(pending) < self.server.limits.pipelined:
            self._resume()

    def _send_ready(self) -> None:
        pending, ready, last = self._pending, [], None
        while pending and pending[0]._answer is not None:
            last = pending.popleft()
            ready.append(last._answer)
            if not last.keep_alive:
                pending.clear()
        if last is not None:
            self.transport.write(b"".join(ready))  # type: ignore[arg-type]
            if not last.keep_alive:
                self._linger()

    # ---- ends

    def expire(self) -> None:
        """A deadline passed: say so where that helps, and end."""
        if self._pending and self._written_out:
            self.deadline = self.server.now + self.server.limits.idle_s  # we are the slow ones
        elif (self._in_head or self._current is not None) and not self._lingering:
            self._fail(408, "the request did not arrive in time")
        elif self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """End now, after what is already written."""
        if self.transport is not None:
            self.transport.close()

    def _fail(self, status: int, message: str) -> None:
        """Answer a broken request after those before it, then end: what follows on this connection cannot be trusted."""
        if self._lingering:
            return
        exchange = self._current or Exchange(self, NO_HEAD)
        self._current, self._body = None, []
        exchange.keep_alive = False
        self._broken = True
        self._pending.append(exchange)
        exchange.refuse(status, message)
        self._lingering = True

    def _end_after_answers(self) -> None:
        if self._pending:
            self._pending[-1].keep_alive = False
        elif self.transport is not None:
            self.transport.close()

    def _linger(self) -> None:
        """Close so that the client sees the answer: our side first, its side when it stops sending or after a moment."""
        self._lingering = True
        transport = self.transport
        self.deadline = self.server.now + self.server.limits.linger_s
        if not self._broken or not transport.can_write_eof():
            transport.close()
            return
        with contextlib.suppress(OSError, RuntimeError):  # the client may be gone already
            transport.write_eof()
        self._resume()

    def _pause(self) -> None:
        if self._reading and self.transport is not None:
            self._reading = False
            with contextlib.suppress(RuntimeError):  # closing transports refuse; they need no pacing either
                self.transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and self.transport is not None:
            self._reading = True
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def _unpack(self, data: bytes) -> bytes:
        room = self.server.limits.body_bytes - self._received + 1
        try:
            data = self._inflate.decompress(data, room)
        except zlib.error as e:
            raise _Refused(400, f"the compressed body is damaged: {e}") from e
        if self._inflate.unconsumed_tail:
            raise _Refused(413, f"the unpacked body is longer than the {self.server.limits.body_bytes} bytes allowed")
        return bytes(data)


class _Refused(Exception):
    """Raised inside the parser's calls, caught around them."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def _size(head: RequestHead) -> int:
    return len(head.path) + sum(len(name) + len(value) for name, value in head.headers.items())


def _inflater(coding: bytes) -> Any:
    if coding.lower() == b"identity":
        return None
    bits = _CODINGS.get(coding.lower())
    if bits is None:
        raise _Refused(415, f"Content-Encoding {coding.decode('latin-1')!r}: only gzip and deflate are understood")
    return zlib.decompressobj(bits)


def _pack(body: bytes, coding: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, _CODINGS[coding])
    return packer.compress(body) + packer.flush()

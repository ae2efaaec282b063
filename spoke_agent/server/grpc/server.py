"""The gRPC server: listens, checks tokens, and maps errors to gRPC statuses. Needs the extra `grpc`.

The server is the library's blocking one on a few threads: measured faster than its asyncio one (tests/bench/grpc.py). Health has
a thread of its own, so that it answers while all others wait for a slow model.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc

from spoke_agent.server.grpc.messages import SERVICE
from spoke_agent.server.grpc.service import OPEN, Method, Service
from spoke_agent.server.handlers.infer import public_error

__all__ = ["CODES", "GrpcServer"]

CODES: Final[Mapping[int, grpc.StatusCode]] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's word for the HTTP status of an error; anything else is INTERNAL."""
OnAnswer = Callable[[str, str, int, float, Mapping[str, str]], None]
"""Told after each call: service, method, gRPC's number of the status, when it started (monotonic), the caller's metadata."""
Call = Callable[[bytes, Any], bytes]
_THREADS: Final = 16
_WAITING: Final = 1024
"""Calls at once, working or waiting for a thread; more are told RESOURCE_EXHAUSTED."""
_FOR_EVER_S: Final = 1e6


class GrpcServer:
    """One listening address. `listen` and `stop` are called on the loop; the calls come on threads."""

    def __init__(
        self,
        service: Service,
        *,
        body_bytes: int,
        token: bytes | None = None,
        on_answer: OnAnswer | None = None,
        reuse_port: bool = False,
    ) -> None:
        """`reuse_port`: other workers listen on the same port."""
        self._token = token
        self._on_answer = on_answer
        self._health = ThreadPoolExecutor(1, thread_name_prefix="grpc-health")
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._threads,
            options=[
                ("grpc.max_receive_message_length", body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 32 * 1024),
                ("grpc.so_reuseport", int(reuse_port)),
            ],
            maximum_concurrent_rpcs=_WAITING,
        )
        handlers = {n: grpc.unary_unary_rpc_method_handler(self._behaviour(n, m)) for n, m in service.methods.items()}
        self._server.add_registered_method_handlers(SERVICE, handlers)

    def listen(self, host: str, port: int, *, certificate: Path | None = None, key: Path | None = None) -> int:
        """Start; returns the port (port 0 takes a free one). Raises OSError."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificate is None:
                found = self._server.add_insecure_port(address)
            else:
                pair = ((key or certificate).read_bytes(), certificate.read_bytes())
                found = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as e:
            raise OSError(str(e)) from e
        self._server.start()
        return int(found)

    async def stop(self, *, grace_s: float) -> None:
        """Take no more calls, let those at work end."""
        ended = self._server.stop(grace_s)
        await asyncio.get_running_loop().run_in_executor(None, ended.wait)
        self._health.shutdown(wait=False)
        self._threads.shutdown(wait=False)

    def _behaviour(self, name: str, method: Method) -> Any:
        def call(data: bytes, context: Any) -> bytes:
            if self._token is not None and name not in OPEN:
                self._check_token(context)
            try:
                return method(data, _waits_s(context))
            except Exception as e:  # noqa: BLE001 - engines raise many kinds; the caller is told as over HTTP
                status, text = public_error(e)
                context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), text)
            raise AssertionError("abort raises")

        behaviour: Any = call if self._on_answer is None else _observed(call, name, self._on_answer)
        if name in OPEN:
            behaviour.experimental_thread_pool = self._health
        return behaviour

    def _check_token(self, context: Any) -> None:
        given = dict(context.invocation_metadata()).get("authorization", "")
        scheme, _, token = given.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token or b""):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this server asks for a bearer token (metadata authorization)")


def _observed(call: Call, name: str, on_answer: OnAnswer) -> Call:
    def seen(data: bytes, context: Any) -> bytes:
        started = time.monotonic()
        try:
            return call(data, context)
        finally:
            code = context.code() or grpc.StatusCode.OK
            on_answer(SERVICE, name, code.value[0], started, dict(context.invocation_metadata()))

    return seen


def _waits_s(context: Any) -> float | None:
    """None for a caller without a deadline, for whom the library says a number of centuries."""
    left = context.time_remaining()
    return None if left is None or left > _FOR_EVER_S else float(left)

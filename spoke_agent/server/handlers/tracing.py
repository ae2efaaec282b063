"""One OpenTelemetry span for each request, over HTTP and gRPC. Off unless the operator has configured a tracer provider.

The extra `otel` is the API alone: which exporter, where to and how much is sampled is the operator's choice, for instance
`opentelemetry-instrument spoke serve`, or OTEL_PYTHON_TRACER_PROVIDER. Without a provider nothing is imported or called.
A span tells who was asked and how it went, never what was in it. The caller's `traceparent` is its parent.
Source: OpenTelemetry semantic conventions for HTTP and RPC server spans.
"""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from spoke_agent.server.http.transport import Exchange

__all__ = ["Tracing", "find_tracing"]


def find_tracing() -> "Tracing | None":
    """None while no provider is configured; whoever configures one has imported the API before."""
    if "OTEL_PYTHON_TRACER_PROVIDER" not in os.environ and "opentelemetry.trace" not in sys.modules:
        return None
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return Tracing(provider.get_tracer("spokeshave.serve"))


class Tracing:
    """Spans are made when a request is answered, dated back to its start: nothing is carried along the hot path."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def http(self, exchange: Exchange, status: int, size: int) -> None:
        """An `on_answer` of the transport."""
        path = exchange.path.partition(b"?")[0][:300].decode("utf-8", "replace")
        method = exchange.method.decode("latin-1")
        carrier = {
            name: exchange.headers[name.encode()].decode("latin-1") for name in _CARRIED if name.encode() in exchange.headers
        }
        told = {
            "http.request.method": method,
            "url.path": path,
            "http.response.status_code": status,
            "http.response.body.size": size,
        }
        self._span(f"{method} {path}", exchange.started, told, carrier, failed=status >= 500)

    def rpc(self, service: str, method: str, code: int, started: float, metadata: Mapping[str, str]) -> None:
        """After a gRPC call; `code` is gRPC's number of the status."""
        carrier = {name: metadata[name] for name in _CARRIED if name in metadata}
        told = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "rpc.grpc.status_code": code}
        self._span(f"{service}/{method}", started, told, carrier, failed=code in _SERVER_FAULTS)

    def _span(self, name: str, started: float, told: Mapping[str, Any], carrier: Mapping[str, str], *, failed: bool) -> None:
        from opentelemetry import propagate, trace

        took_ns = int((time.monotonic() - started) * 1e9) if started else 0
        span = self._tracer.start_span(
            name,
            context=propagate.extract(carrier) if carrier else None,
            kind=trace.SpanKind.SERVER,
            attributes=told,
            start_time=time.time_ns() - took_ns,
        )
        if failed:
            span.set_status(trace.StatusCode.ERROR)
        span.end()


_CARRIED = ("traceparent", "tracestate", "baggage")
_SERVER_FAULTS = frozenset({2, 4, 12, 13, 14, 15})
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: errors of the server by the conventions."""

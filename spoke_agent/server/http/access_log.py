"""The access log: one line of JSON for each answer, on the logger `spoke.access`. Off unless it is asked for.

It tells who asked for what and how it went, never what was in it: no bodies, no headers, no ids of requests.
"""

import logging
import time

import orjson

from spoke_agent.server.http.transport import Exchange

__all__ = ["log_answer"]

_log = logging.getLogger("spoke.access")


def log_answer(exchange: Exchange, status: int, size: int) -> None:
    """An `on_answer` of the transport."""
    line = {
        "client": exchange.client,
        "method": exchange.method.decode("latin-1"),
        "path": exchange.path.partition(b"?")[0][:300].decode("utf-8", "replace"),
        "status": status,
        "bytes_in": len(exchange.body),
        "bytes_out": size,
        "ms": round((time.monotonic() - exchange.started) * 1e3, 3) if exchange.started else None,
    }
    _log.info("%s", orjson.dumps(line).decode())

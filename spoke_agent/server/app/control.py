"""The control interface for the agent: reconcile, stats, serving. A unix socket of mode 0600, not for callers of models."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson

from model_formats.core.document import Document
from model_formats.core.errors import SpokeshaveError, public_text
from model_formats.core.log_event import LogEvent
from spoke_agent.server.handlers import metadata
from spoke_agent.server.handlers.prometheus import render_metrics
from spoke_agent.server.http.transport import Exchange
from spoke_agent.server.metrics import rss_bytes
from spoke_agent.server.models.capture import Capture
from spoke_agent.server.models.model_set import ModelSet
from spoke_agent.server_api.messages import ServingAnswer, StatsAnswer

__all__ = ["Control", "answering", "log_fault"]

log = logging.getLogger("spoke.serve")

Ask = Callable[[], Awaitable[Document | bytes]]


def log_fault(error: Exception) -> None:
    """Log a fault of ours, of the server or of the parent of several."""
    log.error(LogEvent.SERVE_HANDLER_FAULT, exc_info=error)


def answering(routes: Mapping[tuple[bytes, bytes], Ask], on_fault: Callable[[Exception], None]) -> Callable[[Exchange], None]:
    """A transport's handler over these calls, each answered in a task of its own; `/control/alive` is answered at once."""
    tasks: set[asyncio.Task[None]] = set()

    def handle(exchange: Exchange) -> None:
        if exchange.path == b"/control/alive":
            exchange.reply(200, b"{}")
            return
        ask = routes.get((exchange.method, exchange.path))
        if ask is None:
            exchange.refuse(404, f"no such call: {exchange.method.decode()} {exchange.path.decode('utf-8', 'replace')[:200]}")
            return
        task = asyncio.get_running_loop().create_task(_answer(exchange, ask, on_fault))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return handle


async def _answer(exchange: Exchange, ask: Ask, on_fault: Callable[[Exception], None]) -> None:
    try:
        found = await ask()
        exchange.reply(200, found if isinstance(found, bytes) else found.canonical())
    except SpokeshaveError as e:
        exchange.refuse(e.http, e.message)
    except Exception as e:  # noqa: BLE001 - the agent must get an answer
        on_fault(e)
        exchange.refuse(500, public_text(e))


class Control:
    """`handle` is the control socket's handler."""

    def __init__(self, models: ModelSet, capture: Capture | None, *, on_fault: Callable[[Exception], None]) -> None:
        self._models = models
        self._capture = capture
        self._started = time.monotonic()
        routes: dict[tuple[bytes, bytes], Ask] = {
            (b"POST", b"/control/reconcile"): self._models.reconcile,
            (b"GET", b"/control/stats"): self._stats,
            (b"GET", b"/control/serving"): self._serving,
            (b"GET", b"/control/metrics"): self._metrics,
            (b"GET", b"/control/statistics"): self._statistics,
        }
        self.handle = answering(routes, on_fault)

    async def _stats(self) -> StatsAnswer:
        capture = self._capture
        return StatsAnswer(
            uptime_s=time.monotonic() - self._started,
            rss_mb=rss_bytes() / 2**20,
            captured_rows=capture.stored_rows if capture is not None else 0,
            capture_dropped_rows=capture.dropped_rows if capture is not None else 0,
            models=self._models.stats(),
        )

    async def _serving(self) -> ServingAnswer:
        return ServingAnswer(models=self._models.serving())

    async def _metrics(self) -> bytes:
        """For the other workers: this one's own page."""
        return render_metrics(self._models, self._capture, time.monotonic() - self._started)

    async def _statistics(self) -> bytes:
        return orjson.dumps(metadata.statistics(self._models, None, None))

"""The agent's private door: reconcile, stats, serving. On a unix socket of mode 0600; nothing here is for callers of models."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from model_formats.document import Document
from model_formats.errors import SpokeshaveError
from spoke_agent.serve.answers import ServingAnswer, StatsAnswer
from spoke_agent.serve.capture import Capture
from spoke_agent.serve.metrics import rss_bytes
from spoke_agent.serve.models import Models
from spoke_agent.serve.transport import Exchange

__all__ = ["Control"]


class Control:
    """`handle` is the control socket's handler."""

    def __init__(self, models: Models, capture: Capture | None, *, on_fault: Callable[[Exception], None]) -> None:
        self._models = models
        self._capture = capture
        self._on_fault = on_fault
        self._started = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._routes: dict[tuple[bytes, bytes], Callable[[], Awaitable[Document]]] = {
            (b"POST", b"/control/reconcile"): self._models.reconcile,
            (b"GET", b"/control/stats"): self._stats,
            (b"GET", b"/control/serving"): self._serving,
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer one call, in a task of its own."""
        if exchange.path == b"/control/alive":
            exchange.reply(200, b"{}")
            return
        answer = self._routes.get((exchange.method, exchange.path))
        if answer is None:
            exchange.refuse(404, f"no such call: {exchange.method.decode()} {exchange.path.decode('utf-8', 'replace')[:200]}")
            return
        task = asyncio.get_running_loop().create_task(self._answer(exchange, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: Exchange, answer: Callable[[], Awaitable[Document]]) -> None:
        try:
            exchange.reply(200, (await answer()).canonical())
        except SpokeshaveError as e:
            exchange.refuse(e.http, e.message)
        except Exception as e:  # noqa: BLE001 - the agent must get an answer
            self._on_fault(e)
            exchange.refuse(500, f"{type(e).__name__}: {e}")

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

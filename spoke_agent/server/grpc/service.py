"""The methods of the service, from bytes to bytes, over the same models and batchers as HTTP.

gRPC calls them on threads of its own. A method reads its request and writes its answer there; in between the server's loop queues
it, unless the model is quick and nothing waits: then it runs on that thread too, and the loop only counts it. Nothing here knows
of the gRPC library: errors are ours.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from math import inf
from typing import Any, Final, TypeVar

from model_formats.core.runtime import Array
from spoke_agent.server.grpc.codec import ParsedRequest, decode, parse_infer, render_infer
from spoke_agent.server.grpc.messages import MESSAGES, fill
from spoke_agent.server.handlers import metadata
from spoke_agent.server.handlers.infer import InferJob, count_direct, infer, infer_direct
from spoke_agent.server.handlers.peers import PeerWorkers
from spoke_agent.server.models.batcher import Batch
from spoke_agent.server.models.model_set import ModelSet
from spoke_agent.server_api.errors import DeadlinePassed, NotAllowed, NotServing

__all__ = ["OPEN", "Method", "Service"]

Method = Callable[[bytes, float | None], bytes]
"""Takes a request's bytes and the seconds its caller waits (None: for ever). Raises SpokeshaveError, or the model's fault."""

OPEN: Final = frozenset({"ServerLive", "ServerReady"})
"""Methods that need no token."""
_COUNT_S: Final = 0.02
"""Calls that ran on their own threads are counted and captured together, this much later: waking the loop for each costs more
than the call itself."""
_T = TypeVar("_T")
_now = time.monotonic


class GrpcJob(InferJob):
    """A gRPC request: run on its own thread, or by the batcher while its thread waits."""

    __slots__ = ("_done", "_error", "_outputs", "asked")

    def __init__(self, asked: ParsedRequest, wait_s: float | None) -> None:
        """`wait_s`: how long the caller waits; None for ever."""
        started = _now()
        super().__init__(asked.request, started=started, deadline=inf if wait_s is None else started + wait_s)
        self.asked = asked
        self._outputs: Sequence[Array] = ()
        self._error: Exception | None = None
        self._done: threading.Lock

    def wait_for_loop(self) -> None:
        """On the caller's thread, before the job is handed to the loop."""
        self._done = threading.Lock()
        self._done.acquire()

    def finish(self, outputs: Sequence[Array]) -> None:
        """On the loop: the answer is there. The caller's thread writes it."""
        self._outputs = outputs

    def send(self) -> None:
        """On the loop: wake the caller's thread."""
        self._done.release()

    def refuse(self, error: Exception) -> None:
        """On the loop: there is none, and why."""
        self._error = error
        self._done.release()

    def waited(self) -> bytes:
        """On the caller's thread: the answer, once the loop is done. Raises what went wrong."""
        left = -1 if self.deadline == inf else max(0.0, self.deadline - _now())
        if not self._done.acquire(timeout=left):
            raise DeadlinePassed("the deadline passed before the answer was there")
        if self._error is not None:
            raise self._error
        return self.written(self._outputs)

    def written(self, outputs: Sequence[Array]) -> bytes:
        """On the caller's thread: the answer's bytes."""
        version = self.version
        return render_infer(self.asked, version.model, str(version.number), version.names, outputs)


class Service:
    """`methods` are called on any thread; the loop is the one that `models` lives on."""

    def __init__(self, models: ModelSet, peers: PeerWorkers | None = None) -> None:
        """`peers`: the other workers, whose counts are told with ours."""
        self._models = models
        self._peers = peers
        self._loop: asyncio.AbstractEventLoop = models.loop
        self._handed: deque[GrpcJob] = deque()
        self._woken = False
        self._ran: deque[tuple[GrpcJob, Batch]] = deque()
        self._counting = False
        self.methods: Mapping[str, Method] = {
            "ServerLive": lambda _, __: fill("ServerLiveResponse", {"live": True}),
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _, __: fill("ServerMetadataResponse", metadata.server()),
            "ModelMetadata": self._asking("ModelMetadata", lambda r: metadata.metadata(models, r.name, r.version or None)),
            "ModelConfig": self._asking("ModelConfig", lambda r: {"config": metadata.config(models, r.name, r.version or None)}),
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._asking("RepositoryIndex", self._index),
            "RepositoryModelLoad": _refuse_loading,
            "RepositoryModelUnload": _refuse_loading,
            "ModelInfer": self.infer,
        }

    def infer(self, data: bytes, wait_s: float | None) -> bytes:
        """One infer request. Requests that arrive together wake the loop once."""
        job = GrpcJob(parse_infer(data), wait_s)
        batch = infer_direct(self._models, job.asked.model, job.asked.version, job)
        if batch is not None:
            self._ran.append((job, batch))
            if not self._counting:
                self._counting = True
                self._loop.call_soon_threadsafe(self._loop.call_later, _COUNT_S, self._count)
            if batch.error is not None:
                raise batch.error
            return job.written(batch.outputs)
        job.wait_for_loop()
        self._handed.append(job)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._submit)
        return job.waited()

    def _submit(self) -> None:
        handed, models = self._handed, self._models
        self._woken = False  # before looking: who comes later wakes the loop again
        while handed:
            job = handed.popleft()
            try:
                infer(models, job.asked.model, job.asked.version, lambda job=job: job)  # type: ignore[misc]
            except Exception as e:  # noqa: BLE001 - whatever it is, the thread that waits must be told
                job.refuse(e)

    def _count(self) -> None:
        """What a batcher does for those it runs, for all that ran on their own threads since the last time."""
        ran = self._ran
        self._counting = False  # before looking, as above
        while ran:
            count_direct(*ran.popleft())

    def _server_ready(self, _: bytes, wait_s: float | None) -> bytes:
        return fill("ServerReadyResponse", {"ready": self._on_loop(lambda: self._models.ready, wait_s)})

    def _model_ready(self, data: bytes, wait_s: float | None) -> bytes:
        request = decode(MESSAGES["ModelReadyRequest"], data)
        try:
            self._on_loop(lambda: self._models.version(request.name, request.version or None), wait_s)
        except NotServing:
            return fill("ModelReadyResponse", {"ready": False})
        return fill("ModelReadyResponse", {"ready": True})

    def _index(self, request: Any) -> dict[str, Any]:
        rows = metadata.index(self._models)
        return {"models": [row for row in rows if row["state"] == "READY" or not request.ready]}

    def _statistics(self, data: bytes, wait_s: float | None) -> bytes:
        request = decode(MESSAGES["ModelStatisticsRequest"], data)

        async def asked() -> dict[str, Any]:
            self._count()
            own = metadata.statistics(self._models, request.name or None, request.version or None)
            return own if self._peers is None else await self._peers.statistics(own)

        return fill("ModelStatisticsResponse", self._awaited(asked(), wait_s))

    def _asking(self, name: str, ask: Callable[[Any], dict[str, Any]]) -> Method:
        def method(data: bytes, wait_s: float | None) -> bytes:
            request = decode(MESSAGES[f"{name}Request"], data)
            return fill(f"{name}Response", self._on_loop(lambda: ask(request), wait_s))

        return method

    def _on_loop(self, ask: Callable[[], _T], wait_s: float | None) -> _T:
        async def asked() -> _T:
            return ask()

        return self._awaited(asked(), wait_s)

    def _awaited(self, answer: Coroutine[Any, Any, _T], wait_s: float | None) -> _T:
        try:
            return asyncio.run_coroutine_threadsafe(answer, self._loop).result(wait_s)
        except TimeoutError as e:
            raise DeadlinePassed("the deadline passed before the answer was there") from e


def _refuse_loading(_: bytes, __: float | None) -> bytes:
    raise NotAllowed("models are not loaded or unloaded by request")

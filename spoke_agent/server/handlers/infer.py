"""The inference use case under REST and gRPC: choose a version, check, run, count. Capture watches what ran.

A transport reads a request into its kind of `InferJob` and gives that three methods: write the answer, send it, refuse. All rules
of serving are here and in the batcher, and no transport is.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from random import random
from zlib import crc32

from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Array, HeadAdapter
from spoke_agent.server.metrics import ModelCounts
from spoke_agent.server.models.batcher import Batch
from spoke_agent.server.models.model_set import BASE_HEAD, LoadedModel, ModelSet
from spoke_agent.server.models.version import Version
from spoke_agent.server.protocol.json_codec import InferRequest
from spoke_agent.server_api.errors import Overloaded, RequestInvalid, UnknownTarget

__all__ = ["InferJob", "count_direct", "infer", "infer_direct", "public_error"]


class InferJob:
    """One request in the batcher, of whatever transport."""

    __slots__ = (
        "adapter",
        "adapter_name",
        "caller",
        "deadline",
        "inputs",
        "key",
        "request",
        "request_id",
        "rows",
        "started",
        "version",
    )

    mirrored = False
    adapter: HeadAdapter | None
    adapter_name: str
    """Empty for the hub's own head."""
    key: object
    rows: int
    version: Version

    def __init__(self, request: InferRequest, *, started: float, deadline: float = inf, caller: int = 0) -> None:
        """Times are monotonic. Raises RequestInvalid for a `timeout` that is none."""
        self.request = request
        self.inputs: Mapping[str, Array] = request.inputs
        self.request_id = request.id or ""
        """For capture and labels; empty when the caller gave none."""
        self.started = started
        self.deadline = min(deadline, _deadline_of(request, started)) if request.parameters else deadline
        self.caller = caller

    def finish(self, outputs: Sequence[Array]) -> None:
        """Write the answer."""
        raise NotImplementedError

    def send(self) -> None:
        """Send what `finish` wrote."""
        raise NotImplementedError

    def refuse(self, error: Exception) -> None:
        """Answer with what went wrong."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Count what went wrong, and answer with it."""
        _count_refusal(self.version.model_counts, error)
        self.refuse(error)


def infer(models: ModelSet, model: str, number: str | None, read: Callable[[], InferJob]) -> None:
    """On the loop: answer one request now or later. `read` parses it, and is not called where the queue is full.

    Raises SpokeshaveError for what is refused at once (already counted); all else is the job's to answer.
    """
    try:
        current, version = models.version(model, number)
        if version.batcher.depth_rows:
            version.batcher.check_room()  # a request that is refused under load costs no parsing
        job = read()
        _prepare(job, current, version, number)
        job.version.taken(job)
        job.version.batcher.submit(job)
    except SpokeshaveError as e:
        _count_refusal(models.counts.get(model), e)
        raise


def infer_direct(models: ModelSet, model: str, number: str | None, job: InferJob) -> Batch | None:
    """On any thread: run one request there and then, when that is quick and nothing waits. `count_direct` counts it afterwards.

    None leaves it to `infer`: what is refused is counted on the loop, and the lot between champion and challenger is drawn once.
    """
    current = models.live.get(model)
    if current is None or current.challenger is not None:
        return None
    try:
        _prepare(job, *models.version(model, number), number)
    except SpokeshaveError:
        return None
    return job.version.batcher.run_direct(job)


def count_direct(job: InferJob, batch: Batch) -> None:
    """On the loop, after the caller has its answer: count what `infer_direct` ran, and show it to capture and mirror."""
    job.version.taken(job)
    if batch.error is not None:
        _count_refusal(job.version.model_counts, batch.error)
    job.version.done(batch)


def public_error(error: Exception) -> tuple[int, str]:
    """HTTP status and text for a caller. Faults inside the model are 500, without the engine's words: they can hold values."""
    if isinstance(error, SpokeshaveError):
        return error.http, error.message
    return 500, f"the model failed: {type(error).__name__}"


def _prepare(job: InferJob, current: LoadedModel, version: Version, number: str | None) -> None:
    """Choose version and head, and hold the request against the contract. Raises RequestInvalid, UnknownTarget."""
    request = job.request
    if current.challenger is not None and number is None:
        version = _choose_version(current, version, request)
    job.version = version
    job.rows = version.signature.rows(request)
    job.adapter_name, job.adapter = _choose_adapter(current, version, request)
    job.key = _key_of(version, request, job.adapter_name)


def _count_refusal(counts: ModelCounts | None, error: Exception) -> None:
    if counts is None:
        return
    if isinstance(error, Overloaded):
        counts.shed += 1
    elif isinstance(error, SpokeshaveError) and error.http < 500:
        counts.bad_requests += 1


def _choose_version(current: LoadedModel, version: Version, request: InferRequest) -> Version:
    """The challenger, for its share of the requests that leave the choice to us.

    Callers that send the parameter `sticky` (a customer, a till) meet the same version every time; others are dealt by lot.
    """
    share = current.slots.challenger
    if current.challenger is None or share is None or "adapter" in request.parameters:
        return version
    key = request.text("sticky")
    if share.sticky_only and not key:
        return version
    lot = crc32(key.encode()) % 100 if key else int(random() * 100)  # noqa: S311 - nothing is guarded by it
    return current.challenger if lot < share.percent else version


def _choose_adapter(current: LoadedModel, version: Version, request: InferRequest) -> tuple[str, HeadAdapter | None]:
    """The head that answers: asked for by the parameter `adapter`, else the site's default. Raises UnknownTarget."""
    asked = request.text("adapter") if request.parameters else None
    if asked is None:
        if not current.adapter_name or version is not current.answering:
            return "", None
        return current.adapter_name, current.adapters[current.adapter_name]
    if asked in ("", BASE_HEAD):
        return "", None
    if version is not current.answering or asked not in current.adapters:
        names = ", ".join((BASE_HEAD, *current.adapters))
        raise UnknownTarget(f"parameters.adapter: {asked!r} is not loaded for this version; there are: {names}")
    return asked, current.adapters[asked]


def _key_of(version: Version, request: InferRequest, adapter_name: str) -> object:
    """Requests of equal key may share a run: the same head, and the same shapes but for the rows."""
    if version.signature.fixed:
        return adapter_name
    return (adapter_name, *(request.inputs[t.name].shape[1:] for t in version.signature.inputs))


def _deadline_of(request: InferRequest, started: float) -> float:
    """The request's own `timeout` parameter: microseconds from its arrival, as Triton has it."""
    timeout = request.parameters.get("timeout")
    if timeout is None or timeout == 0:
        return inf
    if type(timeout) is not int or timeout < 0:
        raise RequestInvalid("parameters.timeout: must be a whole number of microseconds")
    return started + timeout / 1e6

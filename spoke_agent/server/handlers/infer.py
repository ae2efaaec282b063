"""The hot path: an infer request from its bytes to its answer."""

import time
from collections.abc import Mapping, Sequence
from math import inf
from random import random
from zlib import crc32

from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Array, HeadAdapter
from spoke_agent.server.http.transport import Exchange
from spoke_agent.server.metrics import ModelCounts
from spoke_agent.server.models.model_set import BASE_HEAD, LoadedModel, ModelSet
from spoke_agent.server.models.version import DirectRun, Version
from spoke_agent.server.protocol.json_codec import InferRequest, parse_request, render_response
from spoke_agent.server.protocol.request_templates import RequestTemplates
from spoke_agent.server_api.errors import Overloaded, RequestInvalid, UnknownTarget

__all__ = ["InferJob", "answer_error", "choose_adapter", "choose_version", "deadline_of", "infer", "key_of"]

_now = time.monotonic
_OCTETS = b"application/octet-stream"


class InferJob:
    """An HTTP request in a batcher's queue."""

    __slots__ = (
        "adapter",
        "adapter_name",
        "answer",
        "deadline",
        "exchange",
        "inputs",
        "key",
        "request",
        "request_id",
        "rows",
        "started",
        "version",
    )

    mirrored = False

    def __init__(self, exchange: Exchange, request: InferRequest, current: LoadedModel, version: Version, rows: int) -> None:
        self.exchange = exchange
        self.request = request
        self.version = version
        self.inputs: Mapping[str, Array] = request.inputs
        self.rows = rows
        self.started = exchange.started
        """Monotonic time at which the request was complete."""
        self.request_id = request.id or ""
        """For capture and labels; empty when the caller gave none."""
        self.adapter_name, self.adapter = choose_adapter(current, version, request)
        self.key: object = key_of(version, request, self.adapter_name)
        self.deadline = deadline_of(request, exchange.started) if request.parameters else inf
        self.answer: tuple[bytes, int | None] | None = None
        """Body, and the length of its JSON part when raw tensors follow it."""

    def finish(self, outputs: Sequence[Array]) -> None:
        """Write the answer."""
        self.answer = render_response(self.version.words, self.request, outputs)

    def send(self) -> None:
        """Send it."""
        if self.answer is not None:
            body, json_length = self.answer
            if json_length is None:
                self.exchange.reply(200, body)
            else:
                _reply_with_tensors(self.exchange, body, json_length)

    def fail(self, error: Exception) -> None:
        """Answer with what went wrong."""
        answer_error(self.exchange, error, self.version.model_counts)


def infer(models: ModelSet, templates: RequestTemplates, model: str, number: str | None, exchange: Exchange) -> None:
    """Parse, check, and run at once or queue one request; every outcome is an answer on the exchange."""
    try:
        current = models.live.get(model)
        version = current.answering if current is not None and number is None else None
        if current is None or version is None:  # another one is asked for, or there is none
            current, version = models.version(model, number)
        if version.batcher.depth_rows:
            version.batcher.check_room()  # a request that is refused under load costs no parsing
        alone = _is_alone(exchange, version)
        length = exchange.headers.get(b"inference-header-content-length")
        request = templates.parse(exchange.body) if length is None else parse_request(exchange.body, _json_length(length))
        if current.challenger is not None and number is None:
            version = choose_version(current, version, request)
            alone = _is_alone(exchange, version)
        rows = version.signature.rows(request)
        if alone and _answered_alone(exchange, request, current, version, rows):
            return
        version.last_caller = exchange.caller
        job = InferJob(exchange, request, current, version, rows)
        version.taken(job)
        version.batcher.submit(job)
    except SpokeshaveError as e:
        answer_error(exchange, e, models.counts.get(model))


def _answered_alone(exchange: Exchange, request: InferRequest, current: LoadedModel, version: Version, rows: int) -> bool:
    """Answer a request whose caller is alone: the queue costs as much as a short run. False leaves it to the batcher,
    which judges and tells what is not as usual.
    """
    adapter_name, adapter = "", None
    if request.parameters or current.adapter_name:
        adapter_name, adapter = choose_adapter(current, version, request)
        if deadline_of(request, exchange.started) < _now():
            return False
    found = version.run_direct(request.inputs, rows, adapter)
    if found is None:
        return False
    outputs, ran, run_s = found
    try:
        body, json_length = render_response(version.words, request, outputs)
    except RequestInvalid:
        return False
    if json_length is None:
        exchange.reply(200, body)
    else:
        _reply_with_tensors(exchange, body, json_length)
    started = exchange.started
    direct = DirectRun(request.inputs, outputs, rows, request.id or "", adapter_name, started, ran, run_s, _now() - started)
    version.ran_alone((direct,))
    return True


def _is_alone(exchange: Exchange, version: Version) -> bool:
    """Whether the caller follows itself while nothing waits: nobody is there to share the run with."""
    return exchange.caller == version.last_caller != 0 and version.batcher.idle_inline


def _reply_with_tensors(exchange: Exchange, body: bytes, json_length: int) -> None:
    exchange.reply(200, body, content_type=_OCTETS, extra=b"Inference-Header-Content-Length: %d\r\n" % json_length)


def answer_error(exchange: Exchange, error: Exception, counts: ModelCounts | None = None) -> None:
    """The protocol's error shape with the status of the error's kind; faults inside the model are 500."""
    if isinstance(error, SpokeshaveError):
        if counts is not None and isinstance(error, Overloaded):
            counts.shed += 1
        elif counts is not None and error.http < 500:
            counts.bad_requests += 1
        exchange.refuse(error.http, error.message, extra=b"Retry-After: 1\r\n" if error.retryable else b"")
    else:
        exchange.refuse(500, f"the model failed: {type(error).__name__}")


def choose_version(current: LoadedModel, version: Version, request: InferRequest) -> Version:
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


def choose_adapter(current: LoadedModel, version: Version, request: InferRequest) -> tuple[str, HeadAdapter | None]:
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


def key_of(version: Version, request: InferRequest, adapter_name: str) -> object:
    """Requests of equal key may share a run: the same head, and the same shapes but for the rows."""
    if version.signature.fixed:
        return adapter_name
    return (adapter_name, *(request.inputs[t.name].shape[1:] for t in version.signature.inputs))


def deadline_of(request: InferRequest, started: float) -> float:
    """The request's own `timeout` parameter: microseconds from its arrival, as Triton has it."""
    timeout = request.parameters.get("timeout")
    if timeout is None or timeout == 0:
        return inf
    if type(timeout) is not int or timeout < 0:
        raise RequestInvalid("parameters.timeout: must be a whole number of microseconds")
    return started + timeout / 1e6


def _json_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 12:
        raise RequestInvalid("Inference-Header-Content-Length: must be a whole number of bytes, 0 or more")
    return int(value)

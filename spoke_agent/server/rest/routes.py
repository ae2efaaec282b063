"""The paths of the Open Inference Protocol, and the few beside it: `/metrics` and the feedback for labels.

Paths are resolved once and remembered (bounded), so that a request costs one dictionary look-up. Triton's extensions that need
files or memory of the server are answered, but refused: models come signed from the hub, never by request.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import orjson

from model_formats.core.errors import SpokeshaveError
from spoke_agent.server.caches.request_templates import RequestTemplates
from spoke_agent.server.handlers import metadata
from spoke_agent.server.handlers.aggregate import one_page
from spoke_agent.server.handlers.infer import infer
from spoke_agent.server.handlers.peers import PeerWorkers
from spoke_agent.server.handlers.prometheus import render_metrics
from spoke_agent.server.http.transport import Exchange
from spoke_agent.server.models.capture import Capture
from spoke_agent.server.models.model_set import ModelSet
from spoke_agent.server.protocol.bounded_cache import BoundedCache
from spoke_agent.server.rest.infer import answer_error, read_job
from spoke_agent.server_api.errors import NotAllowed, NotServing, RequestInvalid, UnknownTarget, Unsupported

__all__ = ["Routes"]

Answer = Callable[[Exchange], None]
_REMEMBERED: Final = 1024
_LONGEST_REMEMBERED: Final = 300
_TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"


class Routes:
    """`handle` is the transport's handler. `token` guards everything but health, where callers have to show one."""

    def __init__(
        self,
        models: ModelSet,
        capture: Capture | None,
        *,
        templates: RequestTemplates,
        token: bytes | None = None,
        peers: PeerWorkers | None = None,
    ) -> None:
        """`peers`: the other workers, whose counts are told with ours."""
        self._models = models
        self._capture = capture
        self._token = token
        self._peers = peers
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = time.monotonic()
        self._templates = templates
        self._known: BoundedCache[tuple[bytes, bytes], Answer] = BoundedCache(_REMEMBERED)

    def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        answer = self._known.get((exchange.method, exchange.path))
        try:
            if answer is None:
                answer = self._resolved(exchange)
            if self._token is not None:
                self._check_token(exchange)
            answer(exchange)
        except SpokeshaveError as e:
            answer_error(exchange, e)

    def _resolved(self, exchange: Exchange) -> Answer:
        method, path = exchange.method, exchange.path
        parts = _parts(path)
        answer = self._model_route(method, parts) if parts[:2] == ["v2", "models"] else self._server_route(method, parts)
        if answer is None:
            raise UnknownTarget(f"{_text(method)} {_text(path)[:200]}: there is no such path; the protocol's are under /v2")
        if len(path) < _LONGEST_REMEMBERED:
            self._known.remember((method, path), answer)
        return answer

    def _server_route(self, method: bytes, parts: list[str]) -> Answer | None:
        gets: dict[tuple[str, ...], Answer] = {
            ("v2",): self._server,
            ("v2", "health", "live"): self._live,
            ("v2", "health", "ready"): self._ready,
            ("healthz",): self._live,
            ("readyz",): self._ready,
            ("metrics",): self._metrics,
            ("v2", "models"): self._index,
            ("v2", "models", "stats"): lambda x: self._statistics(x, None, None),
        }
        if parts[0] == "v2" and len(parts) > 1 and parts[1].endswith(("sharedmemory", "trace", "logging")):
            return _refuse(Unsupported(f"the {parts[1]} extension is not served"))
        if method in (b"GET", b"HEAD"):
            return gets.get(tuple(parts))
        if method == b"POST" and parts == ["v2", "repository", "index"]:
            return self._index
        if method == b"POST" and parts[:3] == ["v2", "repository", "models"]:
            return _refuse(NotAllowed("models are not loaded or unloaded by request"))
        return None

    def _model_route(self, method: bytes, parts: list[str]) -> Answer | None:
        if parts == ["v2", "models", "stats"] or len(parts) < 3:
            return self._server_route(method, parts)
        model, rest, number = parts[2], parts[3:], None
        if rest[:1] == ["versions"] and len(rest) > 1:
            number, rest = rest[1], rest[2:]
        if method == b"POST" and rest == ["infer"]:
            return partial(self._infer, model, number)
        if method == b"POST" and rest == ["feedback"]:
            return lambda x: self._feedback(x, model)
        if method not in (b"GET", b"HEAD"):
            return None
        found: dict[tuple[str, ...], Answer] = {
            (): lambda x: _json(x, metadata.metadata(self._models, model, number)),
            ("ready",): lambda x: self._model_ready(x, model, number),
            ("config",): lambda x: _json(x, metadata.config(self._models, model, number)),
            ("stats",): lambda x: self._statistics(x, model, number),
        }
        return found.get(tuple(rest))

    # ---- the server

    def _live(self, exchange: Exchange) -> None:
        exchange.reply(200, b'{"live":true}')  # KServe's client reads the word, Triton's the status

    def _ready(self, exchange: Exchange) -> None:
        if not self._models.ready:
            raise NotServing(self._models.unready)
        exchange.reply(200, b'{"ready":true}')

    def _server(self, exchange: Exchange) -> None:
        _json(exchange, metadata.server())

    def _metrics(self, exchange: Exchange) -> None:
        page = render_metrics(self._models, self._capture, time.monotonic() - self._started)
        if self._peers is None:
            exchange.reply(200, page, content_type=_TEXT)
        else:
            self._soon(_tell_page(exchange, page, self._peers))

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._models.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _index(self, exchange: Exchange) -> None:
        _json(exchange, metadata.index(self._models))

    def _statistics(self, exchange: Exchange, model: str | None, number: str | None) -> None:
        found = metadata.statistics(self._models, model, number)
        if self._peers is None:
            _json(exchange, found)
        else:
            self._soon(_tell_statistics(exchange, found, self._peers))

    # ---- one model

    def _infer(self, model: str, number: str | None, exchange: Exchange) -> None:
        infer(self._models, model, number, partial(read_job, self._templates, exchange))

    def _model_ready(self, exchange: Exchange, model: str, number: str | None) -> None:
        self._models.version(model, number)
        _json(exchange, {"name": model, "ready": True})

    def _feedback(self, exchange: Exchange, model: str) -> None:
        self._models.current(model)
        if self._capture is None:
            raise Unsupported("capture is switched off here, so labels have no row to belong to")
        request_id, labels = _feedback_of(exchange.body)
        loop = self._models.loop

        def told(outcome: bool | Exception) -> None:  # noqa: FBT001 - a value, not a switch
            loop.call_soon_threadsafe(_answer_feedback, exchange, outcome)

        self._capture.label(request_id, labels, told)

    def _check_token(self, exchange: Exchange) -> None:
        if exchange.path in (b"/v2/health/live", b"/v2/health/ready", b"/healthz", b"/readyz"):
            return
        scheme, _, given = exchange.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token or b""):
            raise TokenRequired("this server asks for a bearer token (header Authorization)")


async def _tell_page(exchange: Exchange, own: bytes, peers: PeerWorkers) -> None:
    pages = [own, *await peers.ask("/control/metrics")]
    exchange.reply(200, one_page([page.decode() for page in pages]).encode(), content_type=_TEXT)


async def _tell_statistics(exchange: Exchange, own: dict[str, Any], peers: PeerWorkers) -> None:
    _json(exchange, await peers.statistics(own))


class TokenRequired(NotAllowed):
    """No token, or a wrong one."""

    code = "request_token_required"
    http = 401
    hint = "Send `Authorization: Bearer TOKEN` with the token of the server's token file."


def _answer_feedback(exchange: Exchange, outcome: bool | Exception) -> None:  # noqa: FBT001 - one caller
    if isinstance(outcome, Exception):
        answer_error(exchange, outcome)
    else:
        _json(exchange, {"known": outcome})


def _feedback_of(body: bytes) -> tuple[str, list[float]]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise RequestInvalid(f"the feedback is not JSON: {e}") from e
    if type(document) is not dict or type(document.get("id")) is not str or not document["id"]:
        raise RequestInvalid("id: must be the id of the infer request")
    labels = document.get("label")
    labels = labels if type(labels) is list else [labels]
    if not labels or not all(type(value) in (int, float) for value in labels):
        raise RequestInvalid("label: must be a number (the class's position), or one for each row of the request")
    return document["id"], labels


def _refuse(error: SpokeshaveError) -> Answer:
    return lambda exchange: answer_error(exchange, error)


def _json(exchange: Exchange, value: object) -> None:
    exchange.reply(200, orjson.dumps(value))


def _parts(path: bytes) -> list[str]:
    try:
        return [unquote_to_bytes(part).decode() for part in path.partition(b"?")[0].strip(b"/").split(b"/")]
    except UnicodeDecodeError as e:
        raise UnknownTarget("the path is not UTF-8") from e


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")

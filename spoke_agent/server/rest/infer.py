"""Infer requests over HTTP: from bytes to the use case's job, and from its outputs to bytes."""

from collections.abc import Sequence

from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Array
from spoke_agent.server.caches.request_templates import RequestTemplates
from spoke_agent.server.handlers.infer import InferJob, public_error
from spoke_agent.server.http.transport import Exchange
from spoke_agent.server.protocol.json_codec import InferRequest, parse_request, render_response
from spoke_agent.server_api.errors import RequestInvalid

__all__ = ["RestJob", "answer_error", "read_job"]

_OCTETS = b"application/octet-stream"


class RestJob(InferJob):
    """A request over HTTP."""

    __slots__ = ("_body", "_exchange", "_json_length")

    def __init__(self, exchange: Exchange, request: InferRequest) -> None:
        super().__init__(request, started=exchange.started, caller=exchange.caller)
        self._exchange = exchange
        self._body = b""
        self._json_length: int | None = None
        """Length of the body's JSON part when raw tensors follow it."""

    def finish(self, outputs: Sequence[Array]) -> None:
        """Write the answer. Raises RequestInvalid for an output that the asked form cannot hold."""
        self._body, self._json_length = render_response(self.version.words, self.request, outputs)

    def send(self) -> None:
        """Send it."""
        if self._json_length is None:
            self._exchange.reply(200, self._body)
        else:
            extra = b"Inference-Header-Content-Length: %d\r\n" % self._json_length
            self._exchange.reply(200, self._body, content_type=_OCTETS, extra=extra)

    def refuse(self, error: Exception) -> None:
        """Answer with what went wrong."""
        answer_error(self._exchange, error)


def read_job(templates: RequestTemplates, exchange: Exchange) -> RestJob:
    """Parse a request. Raises RequestInvalid."""
    length = exchange.headers.get(b"inference-header-content-length")
    if length is None:
        return RestJob(exchange, templates.parse(exchange.body))
    return RestJob(exchange, parse_request(exchange.body, _json_length(length)))


def answer_error(exchange: Exchange, error: Exception) -> None:
    """The protocol's error shape with the status of the error's kind."""
    status, text = public_error(error)
    again = isinstance(error, SpokeshaveError) and error.retryable
    exchange.refuse(status, text, extra=b"Retry-After: 1\r\n" if again else b"")


def _json_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 12:
        raise RequestInvalid("Inference-Header-Content-Length: must be a whole number of bytes, 0 or more")
    return int(value)

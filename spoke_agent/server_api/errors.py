"""What can go wrong between a caller and a model; each has the HTTP status that the protocol expects.

RefusedError
└── RequestInvalid 400 ── UnknownTarget 404, TooLarge 413, NotAllowed 403, Unsupported 501
DeviceError
├── Overloaded 503 ── DeadlinePassed 504
├── NotServing 503
└── ServerUnreachable 503
"""

from typing import ClassVar

from model_formats.core.errors import DeviceError, RefusedError

__all__ = [
    "DeadlinePassed",
    "NotAllowed",
    "NotServing",
    "Overloaded",
    "RequestInvalid",
    "ServerUnreachable",
    "TooLarge",
    "UnknownTarget",
    "Unsupported",
]


class RequestInvalid(RefusedError):
    """The request breaks the protocol, the model's signature or its contract; the message names the field."""

    code = "request_invalid"
    http = 400
    hint = "Correct the request; `GET /v2/models/NAME` shows what the model takes."


class UnknownTarget(RequestInvalid):
    """No such path, model, version, adapter or output."""

    code = "request_unknown_target"
    http = 404


class TooLarge(RequestInvalid):
    """More bytes than the server takes."""

    code = "request_too_large"
    http = 413
    hint = "Send fewer rows at a time."


class NotAllowed(RequestInvalid):
    """Missing or wrong token, or an action that only signed releases may do."""

    code = "request_not_allowed"
    http = 403
    hint = "Models come signed from the hub; they cannot be loaded by request."


class Unsupported(RequestInvalid):
    """An extension that this server does not have."""

    code = "request_unsupported"
    http = 501
    hint = "`GET /v2` lists the extensions."


class Overloaded(DeviceError):
    """The queue of the model is full."""

    code = "server_overloaded"
    http = 503
    hint = "Try again after the seconds in Retry-After."
    retryable: ClassVar[bool] = True


class DeadlinePassed(Overloaded):
    """The request waited longer than its caller wanted to."""

    code = "request_deadline_passed"
    http = 504


class NotServing(DeviceError):
    """The model is known but no version of it is loaded."""

    code = "model_not_serving"
    http = 503
    hint = "`spoke status` tells which version is on its way, or why it was refused."
    retryable: ClassVar[bool] = True


class ServerUnreachable(DeviceError):
    """The serving process does not answer on its control socket."""

    code = "server_unreachable"
    http = 503
    hint = "Start it with `spoke serve`, or look at its log."
    retryable: ClassVar[bool] = True

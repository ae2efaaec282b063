"""The root of all errors of Spokeshave, and one family for each party that must act.

    SpokeshaveError                 code, message, hint, retryable
    ├── OperatorError   exit 2      a setting, a command or the machine: the person at the keyboard
    ├── AuthorError     exit 3      the model or its package: whoever built it
    ├── RefusedError    exit 4      something untrusted or not allowed was turned away; nothing changed
    ├── HubError        exit 5      the hub (or the way to it) failed; the device can only wait
    └── DeviceError     exit 6      this spoke's disk, memory or processor

Rooms add their own leaves beside the code that raises them. `catalog()` walks the tree, so that the HTTP problem, the CLI exit
status and the help text of a code come from one place; a test proves that codes are unique and documented.
"""

from collections.abc import Iterator
from typing import ClassVar

__all__ = [
    "AuthorError",
    "DeviceError",
    "HubError",
    "OperatorError",
    "RefusedError",
    "SpokeshaveError",
    "catalog",
    "public_text",
]


class SpokeshaveError(Exception):
    """The root. `message` says what and why, `hint` what to do next.

    Subclasses set `code` (snake_case, unique, permanent), and inherit `http` (problem status) and `exit` (CLI status) from
    their family. `retryable` tells a machine whether the same call may succeed later unchanged.
    """

    code: ClassVar[str] = "internal"
    http: ClassVar[int] = 500
    exit: ClassVar[int] = 70
    hint: str = "This is a fault in Spokeshave; report it with the log."
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return self.message


class OperatorError(SpokeshaveError):
    """A setting, a command or the machine it runs on; the operator must act."""

    code = "operator"
    http = 409
    exit = 2
    hint = "Check the command and the settings."


class AuthorError(SpokeshaveError):
    """The model, its package or its evidence; whoever built it must act."""

    code = "author"
    http = 422
    exit = 3
    hint = "Build the model again from a corrected source."


class RefusedError(SpokeshaveError):
    """Something untrusted, stale or not allowed was turned away, and nothing was changed."""

    code = "refused"
    http = 403
    exit = 4
    hint = "Ask the hub's operator; do not work around it."


class HubError(SpokeshaveError):
    """The hub or the way to it failed; the caller can wait and try again."""

    code = "hub"
    http = 503
    exit = 5
    hint = "Try again later; `hub doctor` on the hub tells what is wrong."
    retryable = True


class DeviceError(SpokeshaveError):
    """This machine's disk, memory or processor cannot do what was asked."""

    code = "device"
    http = 507
    exit = 6
    hint = "Run `spoke doctor` on the device."


def public_text(error: BaseException) -> str:
    """What may be written of an exception where others read it: a log, a report, an answer.

    Our own words, and the system's (which name files and addresses, never rows). The text of anybody else's exception can hold
    values of a request or of a row, so it is left out and only the exception's kind is named.
    """
    if isinstance(error, SpokeshaveError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return f"a fault of kind {type(error).__name__}"


def catalog() -> dict[str, type[SpokeshaveError]]:
    """All errors that are imported so far, by code."""
    return {cls.code: cls for cls in _walk(SpokeshaveError)}


def _walk(cls: type[SpokeshaveError]) -> Iterator[type[SpokeshaveError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _walk(sub)

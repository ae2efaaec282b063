"""How both programs write their log: one line an event on stderr, with what the event carries.

Exceptions of other people's code can hold values of a request or a row in their text. So of those only the kind and the place are
written, wherever they turn up: in an event, in a traceback, or because nobody caught them.
"""

import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any

from model_formats.core.errors import public_text
from model_formats.core.log_event import LogEvent

if TYPE_CHECKING:
    import asyncio

__all__ = ["log_loop_fault", "log_to_stderr", "trace_of"]

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
"""What every record has. All else came as `extra`: the half of an event that tells what happened."""
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
_log = logging.getLogger("process")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_said, record.args))
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name is logging's)
        carried = (f" {name}={_said(value)}" for name, value in vars(record).items() if name not in _OWN)
        return super().formatMessage(record) + "".join(carried)

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 (the name is logging's)
        return "" if ei[1] is None else trace_of(ei[1])


def trace_of(error: BaseException) -> str:
    """A traceback that names places and kinds, and of other people's exceptions no text."""
    return "\n".join(_trace(error))


def log_to_stderr(level: int = logging.INFO, *, worker: int | None = None) -> None:
    """Send events of `level` and above to stderr: `time logger LEVEL event key=value ...`. Once in a process, at its start.

    `worker`: which of several like processes this is, written behind the logger's name. What nobody catches is logged as well.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(f"%(asctime)s %(name)s{'' if worker is None else f'[{worker}]'} %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in ("tuf", "httpx"):  # each key that did not sign, each request: no news at a site
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for library in ("asyncio", "grpc"):  # they write an exception's text into their messages
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda found: _fault(LogEvent.PROCESS_UNRAISABLE, found.exc_value)
    threading.excepthook = lambda found: _fault(LogEvent.PROCESS_THREAD_ENDED, found.exc_value)


def log_loop_fault(_: "asyncio.AbstractEventLoop", context: dict[str, Any]) -> None:
    """An event loop's exception handler; asyncio's own writes the exception's text."""
    _fault(LogEvent.PROCESS_LOOP_FAULT, context.get("exception"))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        sys.__excepthook__(kind, error, trace)
    else:
        _fault(LogEvent.PROCESS_ENDED, error)


def _fault(event: LogEvent, error: BaseException | None) -> None:
    _log.error(event, exc_info=error)


def _said(value: object) -> object:
    return public_text(value) if isinstance(value, BaseException) else value


def _trace(error: BaseException) -> list[str]:
    """The places of an exception and of those it came from, innermost first, each with what may be said of it."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = [*_trace(cause), "which led to:"] if cause is not None else []
    frames = [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    return [*before, "Traceback (most recent call last):", *frames, f"{type(error).__name__}: {public_text(error)}"]

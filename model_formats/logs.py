"""How both programs write their log: one line an event on stderr, with what the event carries."""

import logging

__all__ = ["log_to_stderr"]

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
"""What every record has. All else came as `extra`: the half of an event that tells what happened."""


class _Lines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name is logging's)
        carried = (f" {name}={value}" for name, value in vars(record).items() if name not in _OWN)
        return super().formatMessage(record) + "".join(carried)


def log_to_stderr(level: int = logging.INFO, *, worker: int | None = None) -> None:
    """Send events of `level` and above to stderr: `time logger LEVEL event key=value ...`. Once in a process, at its start.

    `worker`: which of several like processes this is, written behind the logger's name.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(f"%(asctime)s %(name)s{'' if worker is None else f'[{worker}]'} %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in ("tuf", "httpx"):  # each key that did not sign, each request: no news at a site
        logging.getLogger(chatty).setLevel(logging.WARNING)

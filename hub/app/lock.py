"""One `hub up` to a folder: who holds its lock. Light, so that a second one is refused before a server is imported."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from hub.config.home import HubHome
from model_formats.core.errors import OperatorError

__all__ = ["HubRunning", "locked", "require_free"]


class HubRunning(OperatorError):
    """Another process serves this folder."""

    code = "hub_running"
    hint = "Stop that one first. To share its work, start `hub worker` beside it."


@contextmanager
def locked(home: HubHome) -> Iterator[None]:
    """Hold the folder. The kernel gives it back whatever happens to this process. Raises HubRunning."""
    with home.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise HubRunning(f"a hub already runs in {home.root}") from e
        yield


def require_free(home: HubHome) -> None:
    """Raise HubRunning where another process serves the folder right now; only `locked` makes sure that none begins to."""
    if home.lock.exists():
        with locked(home):
            return

"""One `hub up` to a folder: who holds its lock. Light, so that a second one is refused before a server is imported."""

from collections.abc import Iterator
from contextlib import contextmanager

from hub.config.home import HubHome
from model_formats.core.errors import OperatorError
from model_formats.core.file_lock import FileLock

__all__ = ["HubRunning", "locked", "require_free"]


class HubRunning(OperatorError):
    """Another process serves this folder."""

    code = "hub_running"
    hint = "Stop that one first. To share its work, start `hub worker` beside it."


@contextmanager
def locked(home: HubHome) -> Iterator[None]:
    """Hold the folder. The kernel gives it back whatever happens to this process. Raises HubRunning."""
    with FileLock(home.lock, busy=HubRunning(f"a hub already runs in {home.root}")):
        yield


def require_free(home: HubHome) -> None:
    """Raise HubRunning where another process serves the folder right now; only `locked` makes sure that none begins to."""
    if home.lock.exists():
        with locked(home):
            return

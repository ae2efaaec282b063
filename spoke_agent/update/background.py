"""Work that must not hold the agent's loop: a future with a way to ask the work to stop."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, Protocol, TypeVar

__all__ = ["BackgroundJob", "InlineJobs", "Jobs", "ThreadJobs", "run_into"]

T = TypeVar("T")
Work = Callable[[threading.Event], T]
"""Gets an event that is set when the work should stop; raises or returns soon after."""


def run_into(future: "Future[T]", call: Callable[[], T]) -> None:
    """Call now; the future gets what it returned or raised."""
    try:
        future.set_result(call())
    except BaseException as e:  # noqa: BLE001 (raised again by `result`)
        future.set_exception(e)


class BackgroundJob(Generic[T]):
    """One piece of work under way. `Future.cancel` cannot stop what has begun, so the work looks at an event."""

    def __init__(self, work: Work[T], on_done: Callable[[], None]) -> None:
        self._work, self._on_done = work, on_done
        self._cancel, self._future = threading.Event(), Future[T]()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly."""
        return self._future.done()

    def result(self) -> T:
        """What it returned; raises what it raised. Only when `done`."""
        return self._future.result()

    def cancel(self) -> None:
        """Ask it to stop, and wait until it has."""
        self._cancel.set()
        wait([self._future])

    def run(self) -> None:
        """Do it, here and now."""
        run_into(self._future, lambda: self._work(self._cancel))
        self._on_done()


class Jobs(Protocol):
    """Where jobs run."""

    def start(self, work: Work[T], on_done: Callable[[], None]) -> BackgroundJob[T]:
        """Begin."""


class ThreadJobs:
    """Each on a daemon thread of its own: a pool's threads would hold the end of the process until a transfer ends."""

    def start(self, work: Work[T], on_done: Callable[[], None]) -> BackgroundJob[T]:
        """Begin."""
        job = BackgroundJob(work, on_done)
        threading.Thread(target=job.run, name="update", daemon=True).start()
        return job


class InlineJobs:
    """At once, in the caller: for sideload and for tests."""

    def start(self, work: Work[T], on_done: Callable[[], None]) -> BackgroundJob[T]:
        """Begin, and end."""
        job = BackgroundJob(work, on_done)
        job.run()
        return job

"""Work that must not hold the agent's loop: a job runs on its own thread, can be cancelled, and is looked at later."""

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["InlineJobs", "BackgroundJob", "Jobs", "ThreadJobs"]

T = TypeVar("T")
Work = Callable[[threading.Event], T]
"""Gets an event that is set when the work should stop; raises or returns soon after."""


class BackgroundJob(Generic[T]):
    """One piece of work under way."""

    def __init__(self, work: Work[T], on_done: Callable[[], None]) -> None:
        self._work, self._on_done = work, on_done
        self._cancel, self._done = threading.Event(), threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly."""
        return self._done.is_set()

    def wait(self) -> None:
        """Until it has ended."""
        self._done.wait()

    def result(self) -> T:
        """What it returned; raises what it raised. Only when `done`."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def cancel(self) -> None:
        """Ask it to stop, and wait until it has."""
        self._cancel.set()
        self._done.wait()

    def run(self) -> None:
        """Do it, here and now."""
        try:
            self._value = self._work(self._cancel)
        except BaseException as e:  # noqa: BLE001 (raised again by `result`)
            self._error = e
        finally:
            self._done.set()
            self._on_done()


class Jobs(Protocol):
    """Where jobs run."""

    def start(self, work: Work[T], on_done: Callable[[], None]) -> BackgroundJob[T]:
        """Begin."""


class ThreadJobs:
    """Each on a thread of its own."""

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

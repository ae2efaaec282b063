"""The threads that calls run on: what the gRPC library needs of the standard library's pool, at a third of its cost a call."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Task", "Threads"]

_log = logging.getLogger("spoke.serve")


class Task:
    """One call on its way through a thread."""

    __slots__ = ("_over", "_run", "_tell")

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self._over = False
        self._tell: list[Callable[[Task], None]] = []

    def add_done_callback(self, tell: Callable[["Task"], None]) -> None:
        """Call `tell` once, when the call is over or, if it is by then, now."""
        self._tell.append(tell)
        if self._over:
            self._told()

    def work(self) -> None:
        """On a thread: the call, then who waits for its end."""
        try:
            self._run()
        finally:
            self._over = True
            self._told()

    def _told(self) -> None:
        while self._tell:
            try:
                tell = self._tell.pop()
            except IndexError:  # the other side was quicker: it told
                return
            tell(self)


class Threads:
    """A fixed number of threads over one queue without bounds (the server bounds its calls)."""

    def __init__(self, threads: int, *, name: str) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
        """Run it on a thread, soon. A fault of its own is the library's to report; the thread goes on."""
        task = Task(lambda: run(*args, **kwargs))
        self._tasks.put(task)
        return task

    def close(self) -> None:
        """End the threads once what is queued is done."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task.work()
            except Exception:  # noqa: BLE001 - the library catches what a call raises; whatever is left must not cost a thread
                _log.exception("call_fault")

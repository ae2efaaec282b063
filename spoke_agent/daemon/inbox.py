"""What wakes the agent's loop: messages of the bus, calls from other threads, jobs that ended."""

import contextlib
import queue
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from spoke_agent.update.background import run_into
from sync.bus.bus import Message

__all__ = ["AgentInbox"]

T = TypeVar("T")
QUEUE_ITEMS = 10_000


class AgentInbox:
    """Filled from any thread, emptied by the loop alone."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Message | Callable[[], None] | None] = queue.Queue(QUEUE_ITEMS)

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return self._queue.empty()

    def wake(self) -> None:
        """Have the loop look again now."""
        with contextlib.suppress(queue.Full):  # then it is awake enough
            self._queue.put_nowait(None)

    def put(self, message: Message) -> None:
        """A message of the bus."""
        with contextlib.suppress(queue.Full):  # all that is subscribed is retained, and comes again at the next connection
            self._queue.put_nowait(message)

    def ask(self, call: Callable[[], T]) -> T:
        """Run something on the loop's thread and wait for its answer. Raises what it raised."""
        answer = Future[T]()
        self._queue.put(partial(run_into, answer, call))
        return answer.result()

    def take(self, timeout_s: float, receive: Callable[[Message], None]) -> None:
        """Wait for something, then take all there is."""
        with contextlib.suppress(queue.Empty):
            self._handle(self._queue.get(timeout=timeout_s), receive)
            while True:
                self._handle(self._queue.get_nowait(), receive)

    def _handle(self, item: Message | Callable[[], None] | None, receive: Callable[[Message], None]) -> None:
        if isinstance(item, Message):
            receive(item)
        elif item is not None:
            item()

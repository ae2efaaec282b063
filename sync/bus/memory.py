"""A broker in memory that behaves like the real one: access lists, retained messages, wills, sessions, shared subscriptions.

For tests and simulations. `cut` and `heal` break and mend a connection; `stop` and `start` restart the broker.
"""

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from model_formats.core.log_event import LogEvent
from sync.bus.bus import BusDown, Handler, Message, Subscription
from sync.protocol.topics import Right, matches, unshared

__all__ = ["MemoryBroker", "MemoryBus"]

log = logging.getLogger(__name__)


class MemoryBroker:
    """Clients of one broker see each other, across the threads of one process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._retained: dict[str, Message] = {}
        self._buses: list[MemoryBus] = []
        self._turn = itertools.count()
        self.running = True

    def client(self, name: str, rights: Iterable[Right] | None = None) -> "MemoryBus":
        """A client with these rights (None: all). What it may not do is dropped in silence, as Mosquitto does."""
        bus = MemoryBus(self, name, None if rights is None else tuple(rights))
        with self._lock:
            self._buses.append(bus)
        return bus

    def cut(self, bus: "MemoryBus") -> None:
        """Break one client's connection, so that its will is published; it stays away until `heal`."""
        with self._lock:
            bus._lose()
            if bus.will is not None and self.running:
                self.route(bus.rights, bus.will)

    def heal(self, bus: "MemoryBus") -> None:
        """Let a client come back."""
        with self._lock:
            bus._come_back()

    def stop(self) -> None:
        """The broker goes away; retained messages are kept, as by persistence."""
        with self._lock:
            self.running = False
            for bus in self._buses:
                bus._lose()

    def start(self) -> None:
        """The broker comes back, and with it all that were connected."""
        with self._lock:
            self.running = True
            for bus in self._buses:
                bus._come_back()

    def route(self, rights: tuple[Right, ...] | None, message: Message) -> None:
        """Deliver a message from somebody with these rights."""
        if not _may(rights, "write", message.topic):
            return
        with self._lock:
            if message.retain and message.payload:
                self._retained[message.topic] = message
            elif message.retain:
                self._retained.pop(message.topic, None)
            for holder in self._holders(message.topic):
                holder.bus._arrive(holder, replace(message, retain=False, qos=min(message.qos, holder.qos)))

    def retained(self, holder: "_Held") -> None:
        """Give a new subscription what was kept for it; shared ones get nothing, as MQTT says."""
        if holder.pattern.startswith("$share/"):
            return
        with self._lock:
            for topic, message in sorted(self._retained.items()):
                if matches(holder.pattern, topic) and _may(holder.bus.rights, "read", topic):
                    holder.bus._arrive(holder, replace(message, qos=min(message.qos, holder.qos)))

    def _holders(self, topic: str) -> "Iterable[_Held]":
        shared: dict[str, list[_Held]] = {}
        for bus in self._buses:
            for held in bus.held if _may(bus.rights, "read", topic) else ():
                if not matches(unshared(held.pattern), topic):
                    continue
                if held.pattern.startswith("$share/"):
                    shared.setdefault(held.pattern, []).append(held)
                else:
                    yield held
        for group in shared.values():
            here = [held for held in group if held.bus.connected] or group
            yield here[next(self._turn) % len(here)]


@dataclass(eq=False, slots=True)
class _Held:
    """A subscription."""

    bus: "MemoryBus"
    pattern: str
    handler: Handler
    qos: int

    def cancel(self) -> None:
        """Unsubscribe; the handler is not called after this returns."""
        with self.bus._delivery:
            self.bus.held = tuple(held for held in self.bus.held if held is not self)


class MemoryBus:
    """`sync.bus.bus.Bus` on a MemoryBroker, with a delivery thread of its own."""

    def __init__(self, broker: MemoryBroker, name: str, rights: tuple[Right, ...] | None) -> None:
        self.broker, self.name, self.rights = broker, name, rights
        self.will: Message | None = None
        self.held: tuple[_Held, ...] = ()
        self._callbacks: list[Callable[[], None]] = []
        self._delivery = threading.RLock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outbox: list[Message] = []
        self._inbox: list[tuple[_Held, Message]] = []
        self._wanted = self._up = False
        self._thread: threading.Thread | None = None

    @property
    def connected(self) -> bool:
        """Whether messages flow right now."""
        return self._up

    def connect(self, *, will: Message | None = None, timeout: float | None = 10.0) -> None:
        """Connect; with a stopped broker it raises BusDown at once, or (timeout None) waits for it in the background."""
        with self.broker._lock:
            if timeout is not None and not self.broker.running:
                raise BusDown("the broker in memory is stopped")
            self.will, self._wanted = will, True
            self._thread = threading.Thread(target=self._run, name=f"memory-bus-{self.name}", daemon=True)
            self._thread.start()
            self._come_back()

    def publish(self, message: Message) -> None:
        """Send; QoS 1 is kept while the line is down."""
        with self.broker._lock:
            if self._up:
                self.broker.route(self.rights, message)
            elif message.qos == 0:
                raise BusDown(f"not connected to the broker; a message to {message.topic} was not sent")
            else:
                self._outbox.append(message)

    def flush(self, timeout: float) -> bool:
        """Whether nothing waits: in memory all is delivered at once, or not at all."""
        return not self._outbox

    def subscribe(self, pattern: str, handler: Handler, *, qos: int = 1) -> Subscription:
        """Receive all that matches, retained messages first."""
        held = _Held(self, pattern, handler, qos)
        with self.broker._lock:
            self.held = (*self.held, held)
            if self._up:
                self.broker.retained(held)
        return held

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Called after every (re)connect, on the bus's thread."""
        self._callbacks.append(callback)

    def close(self) -> None:
        """Disconnect cleanly (no last will)."""
        with self.broker._lock:
            self._wanted = self._up = False
            self.held = ()
        self._work.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # ---- called by the broker, under its lock -----------------------------------------------------------------------------

    def _lose(self) -> None:
        self._up = False

    def _come_back(self) -> None:
        if not self._wanted or self._up or not self.broker.running:
            return
        self._up = True
        kept, self._inbox = self._inbox, []
        for held in self.held:
            self.broker.retained(held)
        for held, message in kept:
            self._arrive(held, message)
        unsent, self._outbox = self._outbox, []
        for message in unsent:
            self.broker.route(self.rights, message)
        for callback in self._callbacks:
            self._work.put(callback)

    def _arrive(self, held: _Held, message: Message) -> None:
        if self._up:
            self._work.put(lambda: self._deliver(held, message))
        elif self._wanted and message.qos > 0:
            self._inbox.append((held, message))

    def _deliver(self, held: _Held, message: Message) -> None:
        with self._delivery:
            if held in self.held:
                held.handler(message)

    def _run(self) -> None:
        while (call := self._work.get()) is not None:
            try:
                call()
            except Exception:  # one bad handler must not stop the delivery to all others
                log.exception(LogEvent.BUS_HANDLER_FAILED)


def _may(rights: tuple[Right, ...] | None, access: str, topic: str) -> bool:
    return rights is None or any(right.access == access and matches(right.pattern, topic) for right in rights)

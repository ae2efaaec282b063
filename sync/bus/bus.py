"""The interface of the message bus. `memory.py` and `mqtt.py` implement it; tests/contract/test_bus.py holds for both.

Handlers run on the bus's own thread, must return at once (put into a queue), and must not raise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from model_formats.core.errors import HubError

__all__ = ["Bus", "BusDown", "Handler", "Message", "Subscription"]


class BusDown(HubError):
    """The broker cannot be reached, or refuses this client."""

    code = "broker_down"
    hint = "Is `hub up` running, and is the address right? A spoke goes on serving and tries again by itself."


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `qos` 0 may be lost, 1 arrives at least once. `retain`: the broker keeps it for later subscribers."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


Handler = Callable[[Message], None]


class Subscription(Protocol):
    """A running subscription."""

    def cancel(self) -> None:
        """Unsubscribe; the handler is not called after this returns."""


class Bus(Protocol):
    """A connection that heals itself: subscriptions and the will survive a reconnect."""

    @property
    def connected(self) -> bool:
        """Whether messages flow right now."""

    def connect(self, *, will: Message | None = None, timeout: float | None = 10.0) -> None:
        """Connect, and stay connected (back-off with jitter).

        `timeout` None: return at once and try for ever; otherwise raises BusDown when it runs out.
        """

    def publish(self, message: Message) -> None:
        """Send. QoS 1 is kept until acknowledged (bounded; blocks when full). QoS 0 raises BusDown when not connected."""

    def flush(self, timeout: float) -> bool:
        """Wait until all QoS 1 messages are acknowledged; False when the time ran out."""

    def subscribe(self, pattern: str, handler: Handler, *, qos: int = 1) -> Subscription:
        """Receive all that matches, retained messages first. `$share/<group>/<pattern>` shares among members of a group."""

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Called after every (re)connect, on the bus's thread."""

    def close(self) -> None:
        """Disconnect cleanly (no last will)."""

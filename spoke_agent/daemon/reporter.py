"""What the agent says to the hub: signed reports until they are acknowledged, and the retained status with its last will."""

import contextlib
import secrets

from spoke_agent.server_api.client import serving_now
from spoke_agent.update.interfaces import ServingProcess
from spoke_agent.update.journal import Journal
from sync.bus.bus import Bus, BusDown, Message
from sync.core.clock import Clock
from sync.core.types import SpokeId
from sync.protocol import topics
from sync.protocol.messages import Serving, Status

__all__ = ["HubReporter"]

BATCH = 100
"""Reports under way at a time."""


class HubReporter:
    """Used from the agent's loop. Nothing here waits."""

    def __init__(self, bus: Bus, me: SpokeId, journal: Journal, server: ServingProcess, clock: Clock) -> None:
        self._bus, self._me, self._journal, self._server, self._clock = bus, me, journal, server, clock
        self.nonce: str | None = None
        """Of the question for the time that is not answered yet."""
        self._under_way: list[int] = []
        self._said: tuple[object, ...] | None = None
        self._said_at = float("-inf")

    def will(self) -> Message:
        """What the broker says for us when we are gone."""
        return self._status(online=False, serving=())

    def reconnected(self) -> None:
        """Say everything again: the other side may have forgotten. Each model's last report goes out even when acknowledged."""
        self._under_way, self._said = [], None
        self.nonce = secrets.token_hex(16)
        for report in self._journal.latest():
            if report.acknowledged:
                self._publish(Message(topics.report(self._me), report.data, qos=1))

    def tick(self, *, heartbeat_s: float) -> None:
        """Send what is new, and let go of what was acknowledged."""
        if not self._bus.connected:
            return
        self._say_status(heartbeat_s)
        if self._under_way and self._bus.flush(0.0):
            self._journal.acknowledge(self._under_way)
            self._under_way = []
        if not self._under_way:
            for report in self._journal.unacknowledged()[:BATCH]:
                self._publish(Message(topics.report(self._me), report.data, qos=1))
                self._under_way.append(report.sequence)

    def goodbye(self, timeout: float) -> None:
        """A clean stop: say so, and give the last messages a moment."""
        if self._bus.connected:
            self._publish(self._status(online=False, serving=()))
            if self._bus.flush(timeout) and self._under_way:
                self._journal.acknowledge(self._under_way)

    def _say_status(self, heartbeat_s: float) -> None:
        serving, now = serving_now(self._server) or (), self._clock.monotonic()
        saying = (serving, self._journal.generation)
        if saying != self._said or now - self._said_at >= heartbeat_s:
            self._publish(self._status(online=True, serving=serving))
            self._said, self._said_at = saying, now

    def _status(self, *, online: bool, serving: tuple[Serving, ...]) -> Message:
        status = Status(
            site=self._me.site,
            spoke=self._me.spoke,
            online=online,
            time=self._clock.now(),
            generation=self._journal.generation,
            serving=serving,
            asks_time=self.nonce if online else None,
        )
        return Message(topics.status(self._me), status.canonical(), qos=1, retain=True)

    def _publish(self, message: Message) -> None:
        with contextlib.suppress(BusDown):  # it is sent again after the reconnect
            self._bus.publish(message)

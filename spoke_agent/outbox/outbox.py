"""The one door: asks policy and floors, writes the log, then sends."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sync.clock import Clock
from sync.egress import Body, EgressRecord
from sync.messages import EgressCeiling
from sync.types import Regime, SpokeId

__all__ = ["About", "Outbox", "Send"]

Send = Callable[[str, bytes], None]
"""(kind, envelope) -> None: publish on topic `site/<site>/<spoke>/egress/<kind>`, QoS 1. May raise BusDown: it is tried again."""


@dataclass(frozen=True, slots=True)
class About:
    """What a body speaks of."""

    model: str
    version: int
    index: str
    start: datetime
    end: datetime
    rows: int


class Outbox:
    """Default-deny. Every offer is logged, whether it leaves or not, before it leaves."""

    def __init__(
        self,
        home: Path,
        me: SpokeId,
        regime: Regime,
        *,
        clock: Clock,
        send: Send | None = None,
        seal: Callable[[EgressRecord], bytes] | None = None,
        ceiling: Callable[[], EgressCeiling] | None = None,
    ) -> None:
        """`seal` signs a record with the device key (DSSE); without it, records are kept but cannot be sent.

        `ceiling` gives the hub's last signed word (Directive.egress), None meaning the default ceiling.
        """

    def offer(self, body: Body, about: About | None = None) -> bool:
        """Ask to let one body out. True: it may leave and is in the log (and sent, or queued until the hub is reached)."""
        raise NotImplementedError

    def flush(self) -> int:
        """Send what waits; returns how many left. Call after every reconnect and from the loop. Stops quietly when the bus is down."""
        raise NotImplementedError

    def waiting(self) -> list[tuple[str, bytes]]:
        """Sealed messages that have not left, oldest first: (kind, envelope), for sideload receipts."""
        raise NotImplementedError

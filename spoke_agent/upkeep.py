"""What a spoke does now and then: look for drift, empty the outbox, keep adapters and its own certificate up."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model_formats.errors import SpokeshaveError
from model_formats.package import open_package
from provisioning.identity import Identity
from provisioning.online import renew_online
from spoke_agent.home import SpokeHome
from spoke_agent.slots import read_slots
from sync import topics
from sync.bus import Bus, Message
from sync.clock import Clock
from sync.egress import EgressRecord
from sync.messages import EgressCeiling
from sync.store import BlobStore
from sync.trust.envelope import seal

if TYPE_CHECKING:
    from model_formats.profile import ReferenceProfile
    from spoke_agent.data.store import DataStore
    from spoke_agent.drift.monitor import DriftMonitor, Watched
    from spoke_agent.outbox.outbox import Outbox

__all__ = ["Upkeep", "open_outbox"]

log = logging.getLogger(__name__)


def open_outbox(
    home: Path, identity: Identity, clock: Clock, *, bus: Bus | None, ceiling: Callable[[], EgressCeiling | None]
) -> "Outbox":
    """The one door out of this site, sending over the bus where there is one."""
    from spoke_agent.outbox.outbox import Outbox

    signer = identity.signer()

    def send(kind: str, envelope: bytes) -> None:
        if bus is not None:
            bus.publish(Message(topics.egress(identity.spoke, kind), envelope, qos=1))

    def sealed(record: EgressRecord) -> bytes:
        return seal(record, signer)

    return Outbox(
        home,
        identity.spoke,
        identity.regime,
        clock=clock,
        send=send if bus is not None else None,
        seal=sealed,
        ceiling=ceiling,
    )


class Upkeep:
    """Called from the agent's loop. A part that fails is logged and left for next time: none of this may stop an update."""

    def __init__(
        self, home: SpokeHome, identity: Identity, store: BlobStore, data: "DataStore | None", outbox: "Outbox", clock: Clock
    ) -> None:
        self._home, self._identity, self._store, self._clock = home, identity, store, clock
        self._outbox = outbox
        self._monitor = self._open_monitor(data)

    def tick(self, *, connected: bool) -> None:
        """One round."""
        if self._monitor is not None:
            with _told("drift"):
                self._monitor.tick()
        if connected:
            with _told("outbox"):
                self._outbox.flush()
            if self._identity.renewal_due(self._clock.now()):
                with _told("renewal"):
                    renew_online(self._identity, self._clock)

    def _open_monitor(self, data: "DataStore | None") -> "DriftMonitor | None":
        if data is None:
            return None
        from spoke_agent.drift.monitor import DriftMonitor

        return DriftMonitor(
            self._home.root / "drift",
            data,
            self._outbox,
            watched=self._watched,
            profile=self._profile,
            clock=self._clock,
        )

    def _watched(self) -> "list[Watched]":
        from spoke_agent.drift.monitor import Watched

        models = read_slots(self._home.slots).models
        return [Watched(name, m.champion.version, m.champion.index) for name, m in models.items() if m.champion]

    def _profile(self, index: str) -> "ReferenceProfile | None":
        with contextlib.suppress(SpokeshaveError):
            return open_package(self._store, index).profile
        return None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except SpokeshaveError as e:
        log.warning("upkeep.failed", extra={"part": what, "code": e.code, "error": e.message})

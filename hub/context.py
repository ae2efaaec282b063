"""Opens the parts of one hub together; API, loops and tests use them through one object."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hub.config.home import HubHome
from hub.config.settings import HubSettings
from hub.registry.remote_backend import open_registry
from hub.registry.store import RegistryStore
from hub.rules.access import Role
from hub.rules.audit_action import AuditAction
from hub.store.audit import append_audit
from hub.store.database import Database
from hub.store.tokens import make_token
from model_formats.core.errors import OperatorError
from model_formats.core.file_lock import FileLock
from model_formats.core.files import atomic_write
from provisioning.identity.ca import DeviceCA
from provisioning.identity.enrol import HubAddress
from sync.bus.bus import Bus
from sync.core.clock import Clock, SystemClock
from sync.protocol.egress import MASKED
from sync.protocol.messages import EgressCeiling
from sync.transfer.sender import SenderStats
from sync.trust.metadata import Repository

__all__ = ["HubContext", "HubMissing", "found"]


class HubMissing(OperatorError):
    """There is no hub in this folder, or one already."""

    code = "hub_home"
    hint = "`hub init` makes a hub in an empty folder; `--home` or HUB_HOME says which folder."


@dataclass(slots=True)
class HubContext:
    """An open hub: database, trust, registry, CA. No thread runs in here; `wake` tells hub_process.py to look now."""

    home: HubHome
    settings: HubSettings
    clock: Clock
    database: Database
    repository: Repository
    registry: RegistryStore
    ca: DeviceCA
    address: HubAddress | None = None
    """Where spokes reach it; known once the server listens."""
    bus: Bus | None = None
    """The hub's own connection to the broker, while the server runs."""
    sent: SenderStats = field(default_factory=SenderStats)
    """What this process has sent as blocks."""
    wake: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def open(cls, home: Path, settings: HubSettings, clock: Clock | None = None) -> Self:
        """Open what `found` made. The repository gets no folder of offline keys: a running hub cannot release anything.

        Raises HubMissing, DatabaseDown, DatabaseUnusable.
        """
        place, clock = HubHome(home), clock or SystemClock()
        if not place.metadata.exists():
            raise HubMissing(f"no hub in {home}")
        return cls(
            home=place,
            settings=settings,
            clock=clock,
            database=Database(settings.database(place)).open(),
            repository=Repository(place.metadata, keys=place.metadata / "no-offline-keys", clock=clock),
            registry=open_registry(place.blobs, settings),
            ca=DeviceCA.open(place.ca),
        )

    @property
    def now(self) -> float:
        """UTC seconds."""
        return self.clock.now().timestamp()

    @property
    def ceiling(self) -> EgressCeiling:
        """What this hub wants from outboxes at most; it goes into every directive, and what comes is judged by it."""
        wanted = EgressCeiling()
        return wanted.replace(kinds=(*wanted.kinds, *sorted(MASKED))) if self.settings.federated else wanted

    @contextmanager
    def trust(self) -> Iterator[Repository]:
        """The repository, for one writer at a time over threads and processes."""
        with FileLock(self.home.metadata / ".lock"):
            yield self.repository

    def close(self) -> None:
        """Give back the database and the connections."""
        self.registry.close()
        self.database.close()


def found(home: Path, settings: HubSettings, clock: Clock | None = None) -> None:
    """Make a hub: keys and first metadata, device CA, database, the operator's token. Raises HubMissing where one is already."""
    place, clock = HubHome(home), clock or SystemClock()
    if place.metadata.exists():
        raise HubMissing(f"{home} already holds a hub")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not place.ca.exists():
        DeviceCA.create(place.ca, now=clock.now())
    database = Database(settings.database(place)).open()
    with database.begin() as db:
        _, token = make_token(db, "operator", frozenset({Role.OPERATOR, Role.ML_ENGINEER}), now=clock.now().timestamp())
        append_audit(db, "operator", AuditAction.HUB_INIT, settings.name, now=clock.now().timestamp())
    database.close()
    atomic_write(place.token, f"{token}\n".encode(), mode=0o600)
    Repository.create(place.metadata, keys=place.keys, clock=clock)

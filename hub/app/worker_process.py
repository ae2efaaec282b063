"""What `hub worker` runs: a second process for one hub. It shares the database and the broker, and serves no HTTPS.

Workers share by two means. What spokes send (reports, records, wants for blocks) the broker deals out among the subscribers of
`$share/hub`. What must be done by one alone (rollouts, renewals, publishing) is done by whoever holds the lease `turn`; a worker
that dies loses it when the time runs out. Each worker has a name of its own (`hub-1` to `hub-3`), held by a lease as well, with a
certificate for it.

A worker that is killed loses what it had been dealt and not yet written. Spokes say the last word on each model again at their
next connection, so nothing stays unsaid for good, but a step in between may be missing from the record.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from hub.config.home import HubHome
from hub.config.settings import HubSettings
from hub.context import HubContext
from hub.rules.egress_residency import judge
from hub.services import federated, rollout_runner
from hub.services.broker_publisher import BrokerPublisher
from hub.services.ingest import Ingest
from hub.services.package_index import known_package
from hub.services.zone_blobs import ZoneBlobs
from hub.store.leases import release_leases, take_lease
from model_formats.core.errors import OperatorError, SpokeshaveError
from model_formats.core.log_event import LogEvent
from provisioning.brokers.access_list import HUB_USERS
from sync.bus.bus import Bus
from sync.bus.mqtt import MqttBus
from sync.core.clock import Clock
from sync.transfer.sender import BlobSender

__all__ = ["HubWorker", "WorkerRefused", "local_broker", "owner_name", "serve_bus", "take_turn", "turning"]

log = logging.getLogger(__name__)


class WorkerRefused(OperatorError):
    """A worker cannot join this hub now."""

    code = "worker_refused"
    hint = "Start `hub up` first, or name its broker with `--broker HOST:PORT`. Three workers at most can join one hub."


def owner_name() -> str:
    """This server or worker among all that share a database."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(2)}"


def local_broker(home: HubHome, given: str | None = None) -> tuple[str, int]:
    """Host and port of the hub's broker: `given` as HOST:PORT, or those of the hub that runs here. Raises WorkerRefused."""
    if given is not None:
        host, _, port = given.rpartition(":")
        if not host or not port.isdigit():
            raise WorkerRefused(f"{given!r} is not HOST:PORT")
        return host, int(port)
    try:
        told = json.loads(home.address.read_bytes())["spokes_use"]
    except FileNotFoundError as e:
        raise WorkerRefused(f"no hub runs in {home.root}") from e
    return told["broker_host"], int(told["broker_port"])


def serve_bus(hub: HubContext, bus: Bus, stack: contextlib.ExitStack) -> Ingest:
    """Subscribe to what spokes send, and answer their wants, until the stack is closed."""
    zone_blobs, settings = ZoneBlobs(hub), hub.settings
    pace = float(settings.block_bytes_per_s) or None
    sender = BlobSender(
        bus, zone_blobs, may=zone_blobs.may, bytes_per_second=pace, gather_s=settings.block_gather_s, clock=hub.clock
    )
    ingest = Ingest(hub, bus, judge(lambda index: known_package(hub, index), hub.ceiling))
    hub.sent = sender.stats
    for part in (ingest, sender):
        part.start()
        stack.callback(part.stop)
    return ingest


def take_turn(hub: HubContext, owner: str, publisher: BrokerPublisher, refreshed: float) -> tuple[bool, float]:
    """Do what one worker alone may do, if it is our turn; returns whether it was, and when metadata was last looked at."""
    with hub.database.begin() as db:
        mine = take_lease(db, "turn", owner, now=hub.now, life_s=hub.settings.lease_s)
    # In this order: what a rollout decides is published in the same turn.
    if mine:
        rollout_runner.tick(hub)
        federated.tick(hub)
        if hub.now - refreshed >= min(hub.settings.metadata_refresh_s, hub.settings.directive_ttl_s / 4):
            publisher.refresh()
            refreshed = hub.now
    return mine, refreshed


@contextlib.contextmanager
def turning(hub: HubContext, turn: Callable[[], None]) -> Iterator[None]:
    """Take a turn every `tick_s`, or at once when the hub is woken, in a thread that ends with this context.

    One that fails is told and left to the next: nothing is half done. It is not tried again before `tick_s`, woken or not.
    """
    stopping = threading.Event()

    def loop() -> None:
        while not stopping.is_set():
            hub.wake.wait(hub.settings.tick_s)
            # Cleared before the turn: what wakes us during it is seen at the next one.
            hub.wake.clear()
            if stopping.is_set():
                return
            try:
                turn()
            except SpokeshaveError:
                # One turn that failed must not end the hub; state is in the database, and the next turn starts from it.
                log.exception(LogEvent.TURN_FAILED)
                stopping.wait(hub.settings.tick_s)

    thread = threading.Thread(target=loop, name="turns", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        hub.wake.set()
        thread.join(30)


class HubWorker:
    """A running worker. Use as a context manager."""

    def __init__(self, home: HubHome, settings: HubSettings, *, broker: str | None = None, clock: Clock | None = None) -> None:
        """`broker`: HOST:PORT; None takes those of the hub that runs in this folder."""
        self.home, self.settings, self._broker, self._clock = home, settings, broker, clock
        self.name, self._owner = "", owner_name()
        self._stack, self._refreshed = contextlib.ExitStack(), float("-inf")

    def start(self) -> Self:
        """Join. Raises HubMissing, WorkerRefused, BusDown, DatabaseDown."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Leave, and give up all leases at once."""
        self._stack.close()

    def turn(self) -> None:
        """One look at what may be due."""
        with self.hub.database.begin() as db:
            take_lease(db, f"worker:{self.name}", self._owner, now=self.hub.now, life_s=self.settings.lease_s)
        mine, self._refreshed = take_turn(self.hub, self._owner, self.publisher, self._refreshed)
        if mine:
            self.publisher.tick()

    def _start(self) -> None:
        host, port = local_broker(self.home, self._broker)
        self.hub = HubContext.open(self.home.root, self.settings, self._clock)
        self._stack.callback(self.hub.close)
        self._stack.callback(self._release)
        self.name = self._take_name()
        tls = self.hub.ca.issue_client(self.home.root / "workers" / self.name, self.name, now=self.hub.clock.now())
        bus = MqttBus(host, port, self.name, tls, session_s=0)  # the broker deals to absent sessions too: ours ends with us
        self._stack.callback(bus.close)
        self.hub.bus, self.publisher = bus, BrokerPublisher(self.hub, bus)
        self.ingest = serve_bus(self.hub, bus, self._stack)
        bus.connect(timeout=15)
        self.turn()
        self._stack.enter_context(turning(self.hub, self.turn))

    def _take_name(self) -> str:
        with self.hub.database.begin() as db:
            for name in HUB_USERS[1:]:
                if take_lease(db, f"worker:{name}", self._owner, now=self.hub.now, life_s=self.settings.lease_s):
                    return name
        raise WorkerRefused(f"all of {', '.join(HUB_USERS[1:])} are at work")

    def _release(self) -> None:
        with self.hub.database.begin() as db:
            release_leases(db, self._owner)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

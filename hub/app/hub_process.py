"""What `hub up` runs, in one process: Mosquitto as a child, API and registry over HTTPS, and the loops. Start reading here.

    start   lock the folder -> open the hub -> certificate -> broker -> listen -> bus -> ingest, blocks -> first turn
    turn    (every `tick_s`, or at once when something happened) broker alive? access list -> rollouts -> renewals -> publish
    stop    the same in reverse

All lasting state is in the database, so a turn may be cut short at any point: the next one, here or in another process, goes on.
"""

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import uvicorn

from hub.alerts.notifier import open_notifier
from hub.app.asgi import create_app
from hub.app.lock import locked
from hub.app.worker_process import owner_name, serve_bus, take_turn, turning
from hub.config.home import HubHome
from hub.config.settings import HubSettings
from hub.context import HubContext, HubMissing
from hub.services.broker_publisher import BrokerPublisher
from hub.services.enrolments import allowed_spokes
from hub.services.relays import allowed_relays
from hub.store.key_values import get_value, set_value
from hub.store.leases import release_leases
from model_formats.core.errors import OperatorError
from model_formats.core.files import atomic_write
from model_formats.core.log_event import LogEvent
from provisioning.brokers.mosquitto import Broker
from provisioning.identity.enrol import HubAddress
from sync.bus.mqtt import MqttBus
from sync.core.clock import Clock
from sync.core.tls import TlsFiles
from sync.core.types import SpokeId

__all__ = ["HubServer", "PortTaken"]

log = logging.getLogger(__name__)


class PortTaken(OperatorError):
    """The HTTPS port cannot be listened on."""

    code = "port_taken"
    hint = "Stop the other program. Enrolled spokes know this port; `--https-port` moves the hub, and they must be told."


class HubServer:
    """A running hub. Use as a context manager, or `start` and `stop`."""

    def __init__(self, home: HubHome, settings: HubSettings, clock: Clock | None = None) -> None:
        self.home, self.settings, self._clock = home, settings, clock
        self._owner = owner_name()
        self._stack = contextlib.ExitStack()
        self._allowed: list[tuple[SpokeId, str]] = []
        self._relays: Mapping[str, tuple[tuple[SpokeId, str], ...]] = {}
        self._refreshed = float("-inf")

    def start(self) -> Self:
        """Bring everything up, or nothing. Raises HubMissing, HubRunning, PortTaken, BrokerMissing, BrokerFailed, BusDown."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Bring everything down, in order."""
        self._stack.close()

    @property
    def address(self) -> HubAddress:
        """What spokes are told."""
        if self.hub.address is None:
            raise HubMissing("the hub does not run")
        return self.hub.address

    def turn(self) -> None:
        """One look at all that may be due. What needs one worker alone is done by whoever holds the lease."""
        self._keep_broker()
        _, self._refreshed = take_turn(self.hub, self._owner, self.publisher, self._refreshed)
        self.publisher.tick()

    # ---- within -----------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self.home.metadata.exists():
            raise HubMissing(f"no hub in {self.home.root}")
        # Before anything is opened: a second hub on this folder would take over the broker's client id and fight for the ports.
        self._stack.enter_context(locked(self.home))
        self.hub = HubContext.open(self.home.root, self.settings, self._clock)
        self._stack.callback(self.hub.close)
        # Leases go at once when the hub stops, so that a worker takes over without waiting for them to run out.
        self._stack.callback(self._release)
        tls = self._certificates()
        self._start_broker(tls)
        listening = self._listen()
        self._join_bus()
        self._serve(listening, tls)
        self._tell_people()
        self.turn()
        self._stack.enter_context(turning(self.hub, self.turn))
        self._announce()

    def _certificates(self) -> TlsFiles:
        names = dict.fromkeys([self.settings.host, _near(self.settings.bind), "localhost", "127.0.0.1"])
        tls = self.hub.ca.issue_server(self.home.root / "tls", list(names), now=self.hub.clock.now())
        self._client_tls = self.hub.ca.issue_client(self.home.root / "tls", "hub", now=self.hub.clock.now())
        return tls

    def _start_broker(self, tls: TlsFiles) -> None:
        settings = self.settings
        self.broker = Broker(self.home.broker, tls, host=settings.bind, port=settings.mqtt_port, crl=self.hub.ca.crl_path)
        # The access list is written before the broker starts: it never runs with an older one.
        self._allowed, self._relays = allowed_spokes(self.hub), allowed_relays(self.hub)
        self._stack.callback(self.broker.stop)
        self.broker.start(self._allowed, relays=self._relays)

    def _keep_broker(self) -> None:
        """Start it again when it died; tell it of new and of revoked spokes."""
        if not self.broker.alive():
            log.warning(LogEvent.BROKER_RESTARTED)
            self.broker.start(self._allowed, relays=self._relays)
        allowed, relays = allowed_spokes(self.hub), allowed_relays(self.hub)
        # A changed list is a signal to Mosquitto to read it again; connections stay.
        if (allowed, relays) != (self._allowed, self._relays):
            self.broker.allow(allowed, relays=relays)
            self._allowed, self._relays = allowed, relays

    def _listen(self) -> socket.socket:
        """The port of last time, or a free one that is then kept: enrolled spokes know it."""
        with self.hub.database.begin() as db:
            port = self.settings.https_port or int(get_value(db, "https_port") or 0)
            try:
                listening = socket.create_server((self.settings.bind, port), backlog=512)
            except OSError as e:
                raise PortTaken(f"cannot listen on {self.settings.bind}:{port}: {e.strerror}") from e
            self._stack.callback(listening.close)
            port = int(listening.getsockname()[1])
            set_value(db, "https_port", str(port))
        host = self.settings.host
        self.hub.address = HubAddress(url=f"https://{host}:{port}", broker_host=host, broker_port=self.broker.port)
        return listening

    def _join_bus(self) -> None:
        """Subscriptions come before the connection, so that nothing kept for this hub is lost."""
        # Not a clean start: the broker keeps reports that came while the hub was down, for a week.
        bus = MqttBus(
            _near(self.settings.bind), self.broker.port, "hub", self._client_tls, clean_start=False, session_s=7 * 86400
        )
        self._stack.callback(bus.close)
        self.hub.bus = bus
        self.publisher = BrokerPublisher(self.hub, bus)
        self.ingest = serve_bus(self.hub, bus, self._stack)
        bus.connect(timeout=15)

    def _serve(self, listening: socket.socket, tls: TlsFiles) -> None:
        config = uvicorn.Config(
            create_app(self.hub),
            ssl_certfile=str(tls.certificate),
            ssl_keyfile=str(tls.key),
            log_level="warning",
            # The parts are opened and closed here, in order, not by the web framework.
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        server = _Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), name="https", daemon=True)
        thread.start()
        self._stack.callback(thread.join, 15)
        self._stack.callback(server.end)
        if not server.ready.wait(30):
            raise PortTaken("the HTTPS server did not start")

    def _tell_people(self) -> None:
        """Alerts, where a receiver is named."""
        if notifier := open_notifier(self.hub, self._owner):
            notifier.start()
            self._stack.callback(notifier.stop)

    def _announce(self) -> None:
        here = {
            "url": f"https://{_near(self.settings.bind)}:{self.address.url.rpartition(':')[2]}",
            "ca": str(self.home.root / "tls" / "ca.crt"),
            "spokes_use": self.address.plain,
            "pid": os.getpid(),
        }
        atomic_write(self.home.address, json.dumps(here, indent=2).encode())
        self._stack.callback(self.home.address.unlink, missing_ok=True)

    def _release(self) -> None:
        with self.hub.database.begin() as db:
            release_leases(db, self._owner)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class _Server(uvicorn.Server):
    """A uvicorn that runs in a thread, says when it listens, and leaves signals to the command line."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.ready.set()

    def end(self) -> None:
        """Finish what is under way, then stop."""
        self.should_exit = True


def _near(bind: str) -> str:
    """Where this machine reaches an address that it listens on."""
    return {"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(bind, bind)  # noqa: S104

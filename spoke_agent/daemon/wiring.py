"""Puts a spoke's agent together from its home: every real part, in one place."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from model_formats.core.log_event import LogEvent
from provisioning.identity.identity import Identity
from provisioning.identity.online import hub_client
from spoke_agent.daemon.agent import Agent, hold_home
from spoke_agent.daemon.maintenance import Maintenance, open_outbox
from spoke_agent.daemon.reporter import HubReporter
from spoke_agent.data.errors import DataKeyLost, SiteKeyUnavailable
from spoke_agent.data.store import DataStore, open_data
from spoke_agent.outbox.outbox import Outbox
from spoke_agent.server_api.client import ControlClient
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.temp_files import remove_temp_files
from spoke_agent.site.time_window import SiteHours
from spoke_agent.update.background import InlineJobs, Jobs, ThreadJobs
from spoke_agent.update.capacity import boot_id, read_capacity
from spoke_agent.update.controller import UpdateController
from spoke_agent.update.executor import StateHandlers
from spoke_agent.update.interfaces import ServingProcess, Transport
from spoke_agent.update.journal import Journal
from spoke_agent.update.transport import HttpsTransport, MqttTransport, OfflineTransport, Transports
from spoke_agent.update.trust import MetadataCache, SiteVerifier, TrustedClock
from spoke_agent.update.update import Timer
from sync.bus.bus import Bus
from sync.bus.mqtt import MqttBus
from sync.core.clock import Clock, SystemClock
from sync.protocol.messages import EgressCeiling, Report
from sync.store import BlobStore
from sync.transfer.limits import DailyBudget, together
from sync.transfer.rate_limit import RateLimit, TokenBucket
from sync.trust.client import TrustStore
from sync.trust.dsse import seal

__all__ = ["AgentComponents", "assemble", "manners"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentComponents:
    """A spoke's agent and what it is made of."""

    agent: Agent
    identity: Identity
    journal: Journal
    verifier: SiteVerifier
    store: BlobStore
    steps: StateHandlers
    server: ServingProcess
    outbox: Outbox
    data: DataStore | None
    """None where its key is lost."""

    def close(self) -> None:
        """Close all files."""
        self.journal.close()
        self.outbox.close()
        if self.data is not None:
            self.data.close()


@contextlib.contextmanager
def assemble(
    home: SpokeHome,
    settings: SpokeSettings,
    *,
    clock: Clock | None = None,
    bus: Bus | None = None,
    server: ServingProcess | None = None,
    offline: bool = False,
    inline: bool = False,
) -> Iterator[AgentComponents]:
    """Hold the home and build the agent. Raises NotEnrolled, AgentRunning.

    `offline`: no bus, no sockets but the local ones. `inline`: steps run in the caller's thread (sideload). `bus` and `server`
    take the place of Mosquitto and of the serving process.
    """
    identity, clock = Identity.load(home.root), clock or SystemClock()
    with hold_home(home.agent_lock):
        remove_temp_files(home)
        bus = None if offline else bus or _bus(identity)
        jobs = InlineJobs() if inline else ThreadJobs()
        components = _parts(home, settings, identity, clock, bus, server or ControlClient(home.control_socket), jobs)
        try:
            yield components
        finally:
            components.close()


def _bus(identity: Identity) -> Bus:
    address = identity.document.hub
    return MqttBus(address.broker_host, address.broker_port, identity.spoke.username, identity.tls)


def _parts(
    home: SpokeHome,
    settings: SpokeSettings,
    identity: Identity,
    clock: Clock,
    bus: Bus | None,
    server: ServingProcess,
    jobs: Jobs,
) -> AgentComponents:
    me, store, journal = identity.spoke, BlobStore(home.store), Journal(home.journal)
    data = _open_data(home, identity, clock)
    verifier = SiteVerifier(TrustStore(home.trust, clock, identity.tuf_root, site=me.site), identity.zone, identity.regime)
    trusted = TrustedClock(clock, verifier.store)
    hours, boot = SiteHours.of(settings, trusted), boot_id()

    def timer() -> Timer:
        return Timer(clock.now(), clock.monotonic(), boot)

    def ceiling() -> EgressCeiling | None:
        directive = agent.controller.directive
        return directive.egress if directive else None

    def problems() -> list[str]:
        return [e.reason for e in journal.history(100) if clock.now() - e.time < timedelta(days=1)]

    def staleness() -> timedelta:
        return verifier.released().staleness

    outbox = open_outbox(home.root, identity, clock, bus=bus, ceiling=ceiling)
    steps = StateHandlers(
        zone=identity.zone,
        regime=identity.regime,
        hours=hours,
        slots=home.slots,
        store=store,
        trust=verifier,
        transport=_transport(identity, settings, manners(home, settings, hours, trusted), trusted, bus),
        server=server,
        labels=data or _NoLabels(),
        capacity=lambda: read_capacity(
            home.root, disk_reserve_mb=settings.disk_reserve_mb, memory_reserve_mb=settings.memory_reserve_mb
        ),
        timer=timer,
    )

    def make_controller(wake: Callable[[], None]) -> UpdateController:
        return UpdateController(
            me,
            journal,
            steps,
            slots=home.slots,
            trust=verifier,
            server=server,
            settings=settings,
            seal=_sealer(identity, outbox),
            jobs=jobs,
            timer=timer,
            now=trusted.now,
            wake=wake,
        )

    agent = Agent(
        me,
        identity.zone,
        settings=settings,
        journal=journal,
        verifier=verifier,
        mirror=MetadataCache(home.mirror),
        make_controller=make_controller,
        clock=clock,
        bus=bus,
        reporter=HubReporter(bus, me, journal, server, trusted) if bus is not None else None,
        maintenance=Maintenance(
            home,
            identity,
            store,
            data,
            outbox,
            clock,
            settings,
            problems=problems,
            staleness=staleness,
            released=verifier.released,
        ),
    )
    return AgentComponents(agent, identity, journal, verifier, store, steps, server, outbox, data)


def _open_data(home: SpokeHome, identity: Identity, clock: Clock) -> DataStore | None:
    """The rows of this site; None where their key cannot be had: then nothing is learned and no drift seen, but updates go on."""
    try:
        return open_data(home.root, regime=identity.regime, now=lambda: clock.now().timestamp())
    except (DataKeyLost, SiteKeyUnavailable) as e:
        log.error(LogEvent.DATA_LOST, extra={"error": e.message, "hint": e.hint})  # told here and by `spoke doctor`
        return None


class _NoLabels:
    def labelled_accuracy(self, model: str, index: str, since: datetime | None = None) -> tuple[int, int]:
        return (0, 0)


def _transport(identity: Identity, settings: SpokeSettings, pace: RateLimit, clock: Clock, bus: Bus | None) -> Transport:
    if bus is None:
        return OfflineTransport()
    https = HttpsTransport(lambda: hub_client(identity, clock), pace)
    mqtt = MqttTransport(bus, identity.zone, identity.spoke, pace)
    return Transports(mqtt, https, settings.transport, spread_s=settings.fallback_spread_s)


def manners(home: SpokeHome, settings: SpokeSettings, hours: SiteHours, clock: Clock) -> RateLimit:
    """Rate, hours and budget of this site as one rate limit for both transports."""
    paces: list[RateLimit] = [hours.download] if settings.download_hours else []
    if settings.bytes_per_second:
        paces.append(TokenBucket(settings.bytes_per_second, clock=clock))
    if settings.bytes_per_day:
        paces.append(DailyBudget(settings.bytes_per_day, ZoneInfo(settings.timezone), clock, home.budget))
    return together(*paces)


def _sealer(identity: Identity, outbox: Outbox) -> Callable[[Report], bytes]:
    signer = identity.signer()

    def sealed(report: Report) -> bytes:
        return seal(report.replace(evidence=outbox.told(report.evidence)), signer)

    return sealed

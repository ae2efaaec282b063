"""The composition root: makes every part of a spoke's agent from its home."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

from model_formats.core.log_event import LogEvent
from provisioning.identity.identity import Identity
from provisioning.identity.online import hub_client
from spoke_agent.daemon.agent import Agent, HubLink, hold_home
from spoke_agent.daemon.inbox import AgentInbox
from spoke_agent.daemon.maintenance import Maintenance, open_outbox
from spoke_agent.daemon.reporter import HubReporter
from spoke_agent.data.errors import DataKeyLost, SiteKeyUnavailable
from spoke_agent.data.store import DataStore
from spoke_agent.outbox.outbox import Outbox
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.temp_files import remove_temp_files
from spoke_agent.site.time_window import SiteHours
from spoke_agent.tuning.site_context import SiteContext
from spoke_agent.update.arrivals import Arrivals
from spoke_agent.update.background import InlineJobs, Jobs, ThreadJobs
from spoke_agent.update.capacity import boot_id, read_capacity
from spoke_agent.update.controller import UpdateController
from spoke_agent.update.environment import UpdatePorts, UpdateSite
from spoke_agent.update.executor import StepRunner
from spoke_agent.update.interfaces import ServingProcess, Transport
from spoke_agent.update.journal import Journal
from spoke_agent.update.reports import ReportWriter
from spoke_agent.update.transport import HttpsTransport, MqttTransport, OfflineTransport, Transports
from spoke_agent.update.trust import SiteVerifier, TrustedClock
from spoke_agent.update.update import Timer
from sync.bus.bus import Bus
from sync.bus.mqtt import MqttBus
from sync.core.clock import Clock
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
    inbox: AgentInbox
    site: SiteContext
    journal: Journal
    verifier: SiteVerifier
    runner: StepRunner
    arrivals: Arrivals
    server: ServingProcess
    outbox: Outbox
    data: DataStore | None
    """None where its key is lost."""

    @property
    def identity(self) -> Identity:
        """Who this spoke is."""
        return self.site.identity

    @property
    def store(self) -> BlobStore:
        """The blobs of packages."""
        return self.site.store

    def close(self) -> None:
        """Close all files."""
        self.journal.close()
        self.outbox.close()
        self.site.close()


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
    site = SiteContext.open(home.root, clock=clock)
    with hold_home(home.agent_lock):
        remove_temp_files(home)
        bus = None if offline else bus or _bus(site.identity)
        jobs = InlineJobs() if inline else ThreadJobs()
        components = _components(site, settings, bus, server or site.server, jobs)
        try:
            yield components
        finally:
            components.close()


def _bus(identity: Identity) -> Bus:
    address = identity.document.hub
    return MqttBus(address.broker_host, address.broker_port, identity.spoke.username, identity.tls)


def _components(
    site: SiteContext, settings: SpokeSettings, bus: Bus | None, server: ServingProcess, jobs: Jobs
) -> AgentComponents:
    """From the bottom up: each part gets finished parts only."""
    journal, inbox, verifier, data = Journal(site.home.journal), AgentInbox(), _verifier(site), _open_data(site)
    trusted = TrustedClock(site.clock, verifier.store)
    outbox = open_outbox(site.home.root, site.identity, site.clock, bus=bus, ceiling=partial(_ceiling, journal))
    facts = _facts(site, settings, trusted)
    pace = manners(site.home, settings, facts.hours, trusted)
    transport = _transport(site.identity, settings, pace, trusted, bus)
    ports = UpdatePorts(site.store, verifier, transport, server, data or _NoLabels())
    arrivals = Arrivals(journal)
    runner = StepRunner(facts, ports, arrivals)
    reports = ReportWriter(site.identity.spoke, server, _sealer(site.identity, outbox), trusted.now)
    controller = UpdateController(journal, runner, facts, ports, reports, jobs, inbox.wake)
    maintenance = Maintenance(
        site,
        data,
        outbox,
        settings,
        problems=partial(_problems, journal, site.clock),
        staleness=lambda: verifier.released().staleness,
        released=verifier.released,
    )
    link = HubLink(bus, HubReporter(bus, site.identity.spoke, journal, server, trusted)) if bus is not None else None
    agent = Agent(site, settings, journal, verifier, controller, inbox, maintenance, link)
    return AgentComponents(agent, inbox, site, journal, verifier, runner, arrivals, server, outbox, data)


def _verifier(site: SiteContext) -> SiteVerifier:
    identity = site.identity
    trust = TrustStore(site.home.trust, site.clock, identity.tuf_root, site=identity.spoke.site)
    return SiteVerifier(trust, identity.zone, identity.regime)


def _facts(site: SiteContext, settings: SpokeSettings, trusted: Clock) -> UpdateSite:
    boot, clock, reserves = boot_id(), site.clock, (settings.disk_reserve_mb, settings.memory_reserve_mb)
    return UpdateSite(
        zone=site.identity.zone,
        regime=site.identity.regime,
        settings=settings,
        hours=SiteHours.of(settings, trusted),
        slots=site.home.slots,
        capacity=lambda: read_capacity(site.home.root, disk_reserve_mb=reserves[0], memory_reserve_mb=reserves[1]),
        timer=lambda: Timer(clock.now(), clock.monotonic(), boot),
    )


def _ceiling(journal: Journal) -> EgressCeiling | None:
    directive = journal.directive()
    return directive.egress if directive else None


def _problems(journal: Journal, clock: Clock) -> list[str]:
    return [e.reason for e in journal.history(100) if clock.now() - e.time < timedelta(days=1)]


def _open_data(site: SiteContext) -> DataStore | None:
    """The rows of this site; None where their key cannot be had: then nothing is learned and no drift seen, but updates go on."""
    try:
        return site.data
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

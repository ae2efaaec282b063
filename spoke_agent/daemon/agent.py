"""The agent's loop: start reading here.

Messages and finished jobs wake it; whatever woke it, it does the same round: take what arrived, move the updates one step, send
what is to be said. Bus handlers only put into the queue. Nothing in this process answers inference requests, so whatever happens
here, last-good is served on.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_formats.core.errors import DeviceError, OperatorError, RefusedError
from model_formats.core.file_lock import FileLock
from model_formats.core.log_event import LogEvent
from spoke_agent.daemon.inbox import AgentInbox
from spoke_agent.daemon.maintenance import Maintenance
from spoke_agent.daemon.reporter import HubReporter
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.tuning.site_context import SiteContext
from spoke_agent.update.controller import UpdateController
from spoke_agent.update.journal import Journal
from spoke_agent.update.trust import MetadataCache, SiteVerifier
from sync.bus.bus import Bus, Message
from sync.core.types import Reason
from sync.protocol import topics
from sync.protocol.messages import Directive
from sync.trust.errors import MetadataIncomplete, MetadataRefused
from sync.trust.trusted_release import Released
from sync.trust.verifier import verify_directive

__all__ = ["Agent", "AgentRunning", "HubLink", "hold_home"]

log = logging.getLogger(__name__)

DOUBT_S = 3.0
"""Metadata files arrive one by one, and half a set looks like a wrong one: a refusal counts when nothing better came."""


class AgentRunning(OperatorError):
    """Another agent works on this home."""

    code = "agent_running"
    hint = "Stop it first, or use another home (`--home`)."


@contextlib.contextmanager
def hold_home(lock: Path) -> Iterator[None]:
    """Keep a home to oneself. Raises AgentRunning."""
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(lock, busy=AgentRunning(f"another agent holds {lock}")):
        yield


@dataclass(frozen=True, slots=True)
class HubLink:
    """The bus, and what speaks over it."""

    bus: Bus
    reporter: HubReporter


class Agent:
    """One spoke's agent. `run` is the process; `turn` is one round of it."""

    def __init__(
        self,
        site: SiteContext,
        settings: SpokeSettings,
        journal: Journal,
        verifier: SiteVerifier,
        controller: UpdateController,
        inbox: AgentInbox,
        maintenance: Maintenance,
        link: HubLink | None = None,
    ) -> None:
        """`controller` wakes the loop through the same `inbox`. Without `link` the spoke lives on sideloads."""
        self._me, self._zone, self._clock = site.identity.spoke, site.identity.zone, site.clock
        self._settings, self._journal, self._verifier, self._mirror = settings, journal, verifier, MetadataCache(site.home.mirror)
        self.controller, self._inbox, self._maintenance = controller, inbox, maintenance
        self._bus: Bus | None = link.bus if link is not None else None
        self._reporter: HubReporter | None = link.reporter if link is not None else None
        self._stop = threading.Event()
        self._reconnected = threading.Event()
        self._desired: bytes | None = None
        self._refused: set[bytes] = set()
        self._bad_families: set[str] = set()
        self._dirty = True
        self._doubt: tuple[float, MetadataRefused] | None = None
        self._maintenance_at = 0.0
        self.last_refusal = ""

    @property
    def connected(self) -> bool:
        """Whether the hub can be reached over the bus."""
        return self._bus is not None and self._bus.connected

    @property
    def offline(self) -> bool:
        """Whether it was started without a bus, to live on sideloaded bundles."""
        return self._bus is None

    # ---- from other threads

    def stop(self) -> None:
        """End `run` soon."""
        self._stop.set()
        self._inbox.wake()

    # ---- the loop

    def run(self) -> None:
        """Until `stop`. Takes up what the last process left, connects, and goes round."""
        self.begin()
        try:
            while not self._stop.is_set():
                self.turn()
        finally:
            self.end()

    def begin(self) -> None:
        """Take up unfinished updates and begin to listen."""
        clean = self._journal.mark_running()
        self._update_trust()
        self.controller.recover(clean=clean)
        self.controller.tidy()
        if self._bus is not None and self._reporter is not None:
            self._bus.on_connect(self._on_connect)
            self._bus.connect(will=self._reporter.will(), timeout=None)
            self._bus.subscribe(topics.tuf(self._zone, "+"), self._inbox.put)
            self._bus.subscribe(topics.desired(self._me), self._inbox.put)
            self._bus.subscribe(topics.time(self._me), self._inbox.put)
            self._bus.subscribe(topics.receipt(self._me), self._inbox.put)
            self._bus.subscribe(topics.question(self._zone, "+"), self._inbox.put)
            self._bus.subscribe(topics.cohort(self._zone, "+"), self._inbox.put)

    def end(self) -> None:
        """Stop in good order; running transfers keep what they have."""
        self.controller.stop()
        self._journal.mark_stopped()
        if self._bus is not None and self._reporter is not None:
            self._reporter.goodbye(2.0)
            self._bus.close()

    def turn(self) -> None:
        """Wait for something (or a tick), take what there is, and act on it."""
        self._inbox.take(self._settings.tick_s, self.receive)
        self.round()

    def round(self) -> None:
        """Believe, follow, move, say. A device that refuses (full disk, broken journal) is tried again next turn."""
        try:
            if self._dirty:
                self._update_trust()
            if self._doubt and self._clock.monotonic() >= self._doubt[0]:
                self.refuse(self._doubt[1], b"metadata:" + (self._mirror.get("timestamp.json") or b""))
                self._doubt = None
            if self._desired is not None:
                self._follow(self._desired)
            self.controller.tick()
            self._say()
        except DeviceError as e:
            log.error(LogEvent.AGENT_DEVICE, extra={"code": e.code, "error": e.message})
            self.last_refusal = e.message

    # ---- taking

    def receive(self, message: Message) -> None:
        """Sort one message of the bus."""
        if message.topic == topics.desired(self._me):
            self._desired = message.payload or None
        elif message.topic == topics.time(self._me):
            self._set_clock(message.payload)
        elif message.topic == topics.receipt(self._me):
            self._maintenance.take_receipt(message.payload)
        elif topics.is_federated(message.topic):
            self._maintenance.hear(message.topic, message.payload)
        else:
            name = message.topic.rpartition("/")[2]
            self._dirty = self._mirror.put(name, message.payload) or self._dirty

    def _on_connect(self) -> None:
        self._reconnected.set()
        self._inbox.wake()

    def _set_clock(self, answer: bytes) -> None:
        """Take the hub's signed answer to our own question, once; trust may look different at the right time."""
        if self._reporter is None or self._reporter.nonce is None:
            return
        try:
            self._verifier.store.correct_clock(answer, self._me, self._reporter.nonce)
        except (RefusedError, MetadataIncomplete) as e:
            log.warning(LogEvent.AGENT_TIME, extra={"error": e.message})
            return
        self._reporter.nonce, self._dirty = None, True

    # ---- believing and following

    def _update_trust(self) -> None:
        """Move the trusted set forward, if the mirror holds a whole new one. What the disk would not take is tried again."""
        try:
            released = self._verifier.update(self._mirror)
        except MetadataIncomplete:
            self._dirty = False
            return
        except MetadataRefused as e:
            self._dirty, self._doubt = False, (self._clock.monotonic() + DOUBT_S, e)
            return
        self._dirty, self._doubt = False, None
        self._refused.clear()
        self._tell_refused_families(released)
        self.controller.deny(released.denied)

    def _tell_refused_families(self, released: Released) -> None:
        """A family whose own signatures are wrong is left out of the set; the others go on."""
        for role in released.refused.keys() - self._bad_families:
            self.refuse(released.refused[role], role.encode())
        self._bad_families = set(released.refused)

    def _follow(self, data: bytes) -> None:
        """Follow a directive if it is the hub's, for us, and not old. One that is refused, or that the disk would not take, is
        looked at again next turn."""
        accepted = self._journal.directive()
        try:
            directive = verify_directive(
                data,
                self._verifier.released(),
                self._me,
                self._zone,
                accepted.generation if accepted else 0,
                self._verifier.store.now(),
                last_digest=accepted.digest if accepted else None,
            )
        except MetadataIncomplete:
            return
        except RefusedError as e:
            self.refuse(e, data)
            return
        self.follow(directive)
        self._desired = None

    def follow(self, directive: Directive) -> None:
        """Follow a directive that was verified."""
        if directive != self.controller.directive:
            self._verifier.store.witness(directive.issued)
            self.controller.follow(directive)

    def refuse(self, error: RefusedError, data: bytes) -> None:
        """Tell of a refusal once (`data`: of what); last-good is served on."""
        if data in self._refused:
            return
        self._refused.add(data)
        reason = getattr(error, "reason", Reason.DIRECTIVE_UNTRUSTED)
        log.warning(LogEvent.AGENT_REFUSED, extra={"reason": str(reason), "error": error.message})
        self.last_refusal = f"{reason}: {error.message}"
        self.controller.remark(reason)

    # ---- saying

    def _say(self) -> None:
        if self._reporter is not None:
            if self._reconnected.is_set():
                self._reconnected.clear()
                try:
                    self._reporter.reconnected()
                except DeviceError:
                    self._reconnected.set()
                    raise
                self._maintenance_at = 0.0
            self._reporter.tick(heartbeat_s=self._settings.heartbeat_s)
        if self._clock.monotonic() >= self._maintenance_at:
            self._maintenance_at = self._clock.monotonic() + self._settings.upkeep_s
            self._maintenance.tick(connected=self.connected)

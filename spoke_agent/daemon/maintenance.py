"""What a spoke does now and then: look for drift, empty the outbox, keep adapters and its own certificate up."""

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from model_formats.core.errors import SpokeshaveError
from model_formats.core.log_event import LogEvent
from model_formats.package import Package, open_package
from provisioning.identity.identity import Identity
from provisioning.identity.online import renew_online
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.slots import ModelSlots, read_slots
from spoke_agent.tuning.site_context import SiteContext
from sync.bus.bus import Bus, Message
from sync.core.clock import Clock
from sync.protocol import topics
from sync.protocol.egress import EgressRecord
from sync.protocol.messages import EgressCeiling, EgressReceipt
from sync.trust.dsse import seal, unseal
from sync.trust.keys import fingerprint

if TYPE_CHECKING:
    from model_formats.statistics.reference_profile import ReferenceProfile
    from spoke_agent.data.store import DataStore
    from spoke_agent.drift.monitor import DriftMonitor, WatchedModel
    from spoke_agent.federated.respondent import Respondent
    from spoke_agent.outbox.outbox import Outbox
    from spoke_agent.tuning.adapter_lifecycle import AdapterLifecycle
    from spoke_agent.tuning.schedule import TuneSchedule
    from sync.trust.trusted_release import Released

__all__ = ["Maintenance", "open_outbox"]

log = logging.getLogger(__name__)


def open_outbox(
    home: Path, identity: Identity, clock: Clock, *, bus: Bus | None, ceiling: Callable[[], EgressCeiling | None]
) -> "Outbox":
    """The outbox of this site, sending over the bus where there is one."""
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


class Maintenance:
    """Called from the agent's loop. A part that fails is logged and left for next time: none of this may stop an update."""

    def __init__(
        self,
        site: SiteContext,
        data: "DataStore | None",
        outbox: "Outbox",
        settings: SpokeSettings,
        *,
        problems: Callable[[], Iterable[str]] = tuple,
        staleness: Callable[[], timedelta] = timedelta,
        released: "Callable[[], Released] | None" = None,
    ) -> None:
        """`data`: the site's rows, None where their key is lost.

        `problems`: reasons of what failed in the last day; `staleness`: how long ago releases were last known fresh.

        `released`: what is trusted now; without it no federated question is answered.
        """
        self._problems, self._staleness = problems, staleness
        self._site, self._settings = site, settings
        self._home, self._identity, self._store, self._clock = site.home, site.identity, site.store, site.clock
        self._began, self._told_ops = self._clock.monotonic(), float("-inf")
        self._outbox = outbox
        self._monitor = self._open_monitor(data)
        self._lifecycle = self._open_lifecycle(data)
        self._data, self._schedule = data, self._open_schedule()
        self._released, self._respondent = released, self._open_respondent(data, released)

    def hear(self, topic: str, payload: bytes) -> None:
        """A message of the zone's federated topics; it is looked at in the next round."""
        if self._respondent is not None:
            self._respondent.hear(topic, payload)

    def take_receipt(self, envelope: bytes) -> None:
        """The hub's word on the records it has; what is not its word, or is for another device, is passed over."""
        if self._released is None or not envelope:
            return
        with _failures_logged("receipt"):
            released = self._released()
            receipt = unseal(envelope, released.director_keys, EgressReceipt, released.director_threshold)
            me = (self._identity.spoke.site, self._identity.spoke.spoke, fingerprint(self._identity.certificate))
            if (receipt.site, receipt.spoke, receipt.device) == me:
                self._outbox.log.keep_receipt(receipt, envelope)

    def tick(self, *, connected: bool) -> None:
        """One round."""
        alarmed: list[str] = []
        if self._monitor is not None:
            with _failures_logged("drift"):
                self._monitor.tick()
                alarmed = [w.model for w in self._watched() if self._alarms(w.model)]
        if self._lifecycle is not None:
            with _failures_logged("adapters"):
                for words in self._lifecycle.look():
                    log.info(LogEvent.ADAPTER_KEPT, extra={"what": words})
        with _failures_logged("tuning"):
            self._look_at_schedule(alarmed)
        with _failures_logged("operations"):
            self._offer_operations()
        if self._respondent is not None:
            with _failures_logged("federated"):
                self._respondent.tick()
        if connected:
            with _failures_logged("outbox"):
                self._outbox.flush()
            if self._identity.renewal_due(self._clock.now()):
                with _failures_logged("renewal"):
                    renew_online(self._identity, self._clock)

    def _alarms(self, model: str) -> bool:
        state = self._monitor.state(model) if self._monitor else None
        return state is not None and state.detector.level == "alarm"

    def _look_at_schedule(self, alarmed: list[str]) -> None:
        if self._schedule is None or self._data is None:
            return
        labels = {w.model: self._data.labels(w.model, w.index) for w in self._watched()}
        for words in self._schedule.look(labels, alarmed, self._clock.now()):
            log.info(LogEvent.ADAPTER_TUNED, extra={"what": words})

    def _offer_operations(self) -> None:
        """Through the outbox like everything else: the site's policy decides whether it leaves."""
        now = self._clock.monotonic()
        if now - self._told_ops < self._settings.ops_every_s:
            return
        from spoke_agent.outbox.operations import operations, read_metrics

        said = operations(
            self._home.root,
            uptime=timedelta(seconds=now - self._began),
            staleness=self._staleness(),
            problems=self._problems(),
            metrics=read_metrics(self._home.server_socket),
        )
        self._outbox.offer(said)
        self._told_ops = now

    def _open_schedule(self) -> "TuneSchedule | None":
        settings = self._settings
        if not settings.tune_every_hours and not settings.tune_on_drift:
            return None
        from spoke_agent.tuning.schedule import TuneSchedule, start_process

        every = timedelta(hours=settings.tune_every_hours) if settings.tune_every_hours else None
        start = start_process(self._home.root, settings.tune_niceness)
        return TuneSchedule(self._home.root / "drift" / "tuning", start, every=every, on_drift=settings.tune_on_drift)

    def _open_monitor(self, data: "DataStore | None") -> "DriftMonitor | None":
        if data is None:
            return None
        from spoke_agent.drift.estimate import AccuracyEstimator
        from spoke_agent.drift.monitor import DriftMonitor, DriftTimes

        return DriftMonitor(
            self._home.root / "drift",
            data,
            self._outbox,
            watched=self._watched,
            profile=self._profile,
            clock=self._clock,
            times=DriftTimes(
                window=timedelta(seconds=self._settings.drift_window_s),
                budget=timedelta(days=self._settings.drift_budget_days),
                tell_every=timedelta(seconds=self._settings.drift_tell_s),
            ),
            estimator=AccuracyEstimator(data, self._clock, self._package),
        )

    def _open_lifecycle(self, data: "DataStore | None") -> "AdapterLifecycle | None":
        if data is None:
            return None
        from spoke_agent.tuning.adapter_lifecycle import AdapterLifecycle

        return AdapterLifecycle(self._site.tuner, data)

    def _open_respondent(self, data: "DataStore | None", released: "Callable[[], Released] | None") -> "Respondent | None":
        if data is None or released is None:
            return None
        from spoke_agent.data.crypto import load_site_key
        from spoke_agent.federated.respondent import Respondent, ZoneMember
        from spoke_agent.federated.rounds import Rounds

        return Respondent(
            ZoneMember(self._identity.spoke, self._identity.zone, self._identity.tls.ca.read_bytes),
            Rounds(self._home.root / "federated", load_site_key(self._home.root)),
            outbox=self._outbox,
            data=data,
            released=released,
            package=self._served,
        )

    def _served(self, index: str) -> "Package | None":
        """The package of an index that a champion is of."""
        if index not in {w.index for w in self._watched()}:
            return None
        with contextlib.suppress(SpokeshaveError):
            return open_package(self._store, index)
        return None

    def _package(self, watched: "WatchedModel") -> "tuple[Package, str] | None":
        champion = read_slots(self._home.slots).models.get(watched.model, ModelSlots()).champion
        if champion is None or champion.index != watched.index:
            return None
        return open_package(self._store, champion.index), champion.variant

    def _watched(self) -> "list[WatchedModel]":
        from spoke_agent.drift.monitor import WatchedModel

        models = read_slots(self._home.slots).models
        return [WatchedModel(name, m.champion.version, m.champion.index) for name, m in models.items() if m.champion]

    def _profile(self, index: str) -> "ReferenceProfile | None":
        with contextlib.suppress(SpokeshaveError):
            return open_package(self._store, index).profile
        return None


@contextlib.contextmanager
def _failures_logged(what: str) -> Iterator[None]:
    try:
        yield
    except SpokeshaveError as e:
        log.warning(LogEvent.UPKEEP_FAILED, extra={"part": what, "code": e.code, "error": e.message})
    except (OSError, sqlite3.Error) as e:  # a full disk: what needs it waits, and updates and serving go on
        log.warning(LogEvent.UPKEEP_FAILED, extra={"part": what, "code": "disk", "error": str(e)})

"""A spoke's update controller with in-memory fakes around it (hub, transport, server, labels, clock). Its files are real."""

import atexit
import shutil
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

from model_formats.core.cpu_class import CpuClass
from model_formats.core.errors import HubError
from model_formats.core.types import digest_of
from model_formats.package import open_package
from model_formats.package.image_layout import ImageLayout
from model_formats.package.oci import Descriptor
from spoke_agent.server_api.errors import ServerUnreachable
from spoke_agent.server_api.messages import (
    GoldenState,
    LoadedState,
    ModelState,
    ModelStats,
    ReconcileAnswer,
    RoleStats,
    ShadowStats,
    StatsAnswer,
)
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.slots import ModelSlots, Slot, read_slots
from spoke_agent.site.temp_files import remove_temp_files
from spoke_agent.site.time_window import SiteHours
from spoke_agent.update.admission import Capacity
from spoke_agent.update.arrivals import Arrivals
from spoke_agent.update.background import InlineJobs
from spoke_agent.update.controller import UpdateController
from spoke_agent.update.environment import UpdatePorts, UpdateSite
from spoke_agent.update.executor import StepRunner
from spoke_agent.update.interfaces import FetchRequest
from spoke_agent.update.journal import Journal
from spoke_agent.update.reports import ReportWriter
from spoke_agent.update.update import Timer
from sync.core.clock import ManualClock
from sync.core.types import Reason, SpokeId, State
from sync.protocol.messages import DesiredModel, Directive, ProbationTerms, Report, Serving, ShadowTerms
from sync.store import BlobStore
from sync.trust.errors import ContentsRefused, ReleaseRefused
from tests.samples.model_folder import packed

ME = SpokeId("frankfurt")
SIGNATURE = b"signature of the publisher"


class PowerCut(BaseException):
    """The plug is pulled."""


class TransportClosed(HubError):
    code = "test_road_closed"


@dataclass(frozen=True)
class FakeRelease:
    index_size: int
    signature: Descriptor


class FakeTrust:
    def __init__(self, hub: "FakeHub") -> None:
        self.hub = hub
        self.refused: dict[int, Reason] = {}
        self.bad_contents: set[int] = set()
        self.fallback: set[tuple[int, int]] = set()

    def release(self, desired: DesiredModel, current: int | None) -> FakeRelease:
        if desired.version in self.refused:
            raise ReleaseRefused(self.refused[desired.version], f"{desired.model}@{desired.version}")
        if current and desired.version < current and (current, desired.version) not in self.fallback:
            raise ReleaseRefused(Reason.DOWNGRADE_NOT_GRANTED, f"{current} to {desired.version}")
        size = self.hub.layout(desired.index).path(desired.index).stat().st_size
        return FakeRelease(size, Descriptor(digest_of(SIGNATURE), len(SIGNATURE), "signature"))

    def contents(self, blobs, desired: DesiredModel, current: int | None, variant: str) -> None:
        open_package(blobs, desired.index).check(variant)
        if desired.version in self.bad_contents:
            raise ContentsRefused(Reason.PUBLISHER_UNTRUSTED, "wrong signer")


@cache
def _published(version: int, off_on: tuple[tuple[str, CpuClass], ...] = ()) -> tuple[ImageLayout, str]:
    """Packed once for all tests of this process; nobody writes to it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="spokeshave-twins-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    layout, index = packed(folder, version=version, off_on={v: tuple(c for w, c in off_on if w == v) for v, _ in off_on})
    layout.put(SIGNATURE)
    return layout, index


class FakeHub:
    """Packages by index, and the road to them."""

    def __init__(self) -> None:
        self.layouts: dict[str, ImageLayout] = {}
        self.versions: dict[int, str] = {}
        self.closed = 0
        self.fetched: Counter[str] = Counter()
        self.on_fetch = lambda blob: None

    def publish(self, version: int, *off_on: tuple[str, CpuClass]) -> str:
        """`off_on`: variants and the class of CPU that they are off on, by the package's evidence."""
        layout, index = _published(version, off_on)
        self.layouts[index] = layout
        self.versions[version] = index
        return index

    def layout(self, index: str) -> ImageLayout:
        return self.layouts[index]

    def fetch(self, request: FetchRequest) -> int:
        blob = request.blob
        self.on_fetch(blob)
        if self.closed:
            self.closed -= 1
            raise TransportClosed("the road is closed")
        if request.cancel.is_set():
            return 0
        data = self.layout(request.desired.index).path(blob.digest).read_bytes()
        request.store.put_stream(blob.digest, len(data), [data])
        self.fetched[blob.digest] += len(data)
        return len(data)


@dataclass
class Behaviour:
    """How a version does at this site."""

    golden: bool = True
    off: dict[str, Reason] = field(default_factory=dict)
    """Variants that do not load here, and why."""
    load: Reason = Reason.NONE
    latency_ms: float = 1.0
    requests: int = 0
    errors: int = 0
    shadow: ShadowStats = field(default_factory=ShadowStats)
    labels: tuple[int, int] = (0, 0)


class FakeServer:
    """Follows slots.json as the real one does, without loading anything."""

    def __init__(self, slots: Path, clock: ManualClock) -> None:
        self._slots, self._clock = slots, clock
        self.behaviour: dict[int, Behaviour] = {}
        self.away = False
        self.started = clock.monotonic()
        self.loaded: dict[str, ModelSlots] = {}
        self.reconciled = 0

    def restart(self) -> None:
        self.started = self._clock.monotonic()
        self.loaded = {}

    def of(self, slot: Slot) -> Behaviour:
        return self.behaviour.setdefault(slot.version, Behaviour())

    def reconcile(self) -> ReconcileAnswer:
        self._here()
        self.reconciled += 1
        self.loaded = dict(read_slots(self._slots).models)
        return ReconcileAnswer(models={name: self._state(m) for name, m in self.loaded.items()})

    def stats(self) -> StatsAnswer:
        self._here()
        return StatsAnswer(
            uptime_s=self._clock.monotonic() - self.started,
            rss_mb=1.0,
            models={name: self._stats(m) for name, m in self.loaded.items()},
        )

    def serving(self) -> tuple[Serving, ...]:
        self._here()
        return tuple(
            Serving(
                model=name, version=s.version, index=s.index, file=s.index, variant=s.variant, engine="onnxruntime", mode="fast"
            )
            for name, m in self.loaded.items()
            if (s := m.champion)
        )

    def _here(self) -> None:
        if self.away:
            raise ServerUnreachable("control.sock: nobody there")

    def _state(self, m: ModelSlots) -> ModelState:
        return ModelState(champion=self._load(m.champion), candidate=self._load(m.candidate), last_good=self._load(m.last_good))

    def _load(self, slot: Slot | None) -> LoadedState | None:
        if slot is None:
            return None
        b = self.of(slot)
        load = b.off.get(slot.variant, b.load)
        return LoadedState(
            loaded=load is Reason.NONE and b.golden,
            version=slot.version,
            index=slot.index,
            variant=slot.variant,
            golden=GoldenState(ok=b.golden, worst=0.0 if b.golden else 9.0),
            latency_ms=b.latency_ms,
            reason=load,
        )

    def _stats(self, m: ModelSlots) -> ModelStats:
        shadow = self.of(m.candidate).shadow if m.candidate else ShadowStats()
        return ModelStats(champion=self._role(m.champion), candidate=self._role(m.candidate), shadow=shadow)

    def _role(self, slot: Slot | None) -> RoleStats | None:
        if slot is None or (loaded := self._load(slot)) is None or not loaded.loaded:
            return None
        b = self.of(slot)
        return RoleStats(
            version=slot.version,
            index=slot.index,
            variant=slot.variant,
            engine="onnxruntime",
            mode="fast",
            requests=b.requests,
            errors=b.errors,
            latency_ms=b.latency_ms,
        )

    def labelled_accuracy(self, model: str, index: str, since: object = None) -> tuple[int, int]:
        slots = read_slots(self._slots).models.get(model, ModelSlots())
        for slot in (slots.champion, slots.last_good):
            if slot and slot.index == index:
                return self.of(slot).labels
        return (0, 0)


class Rig:
    """One spoke. `restart` is a power cut followed by a start: only files are left."""

    def __init__(self, folder: Path, *, clean: bool = True, **settings: object) -> None:
        self.folder = folder
        self.at = "idle"
        self.clock = ManualClock()
        self.boot = "boot-1"
        self.hub = FakeHub()
        self.trust = FakeTrust(self.hub)
        self.slots = folder / "spoke" / "slots.json"
        self.server = FakeServer(self.slots, self.clock)
        self.settings = SpokeSettings(**{"retry_s": 1.0, "transfer_tries": 5, **settings})
        self.capacity = Capacity(1 << 40, 1 << 20, frozenset({"avx2"}), 21, frozenset({"onnxruntime"}), "avx2")
        self.sent: list[Report] = []
        self.cut_at: set[tuple[str, State]] = set()
        self.generation = 0
        self.start(clean=clean)

    def start(self, *, clean: bool = False) -> None:
        remove_temp_files(SpokeHome(self.folder / "spoke"))
        self.store = BlobStore(self.folder / "spoke")
        self.journal = Journal(self.folder / "spoke" / "journal.db")
        site = UpdateSite(
            zone="eu",
            regime="gdpr",
            settings=self.settings,
            hours=SiteHours.of(self.settings, self.clock),
            slots=self.slots,
            capacity=lambda: self.capacity,
            timer=self.timer,
        )
        ports = UpdatePorts(self.store, self.trust, self.hub, self.server, self.server)
        self.runner = CutRunner(self, site=site, ports=ports, arrivals=Arrivals(self.journal))
        reports = ReportWriter(ME, self.server, self.seal, self.clock.now)
        self.controller = UpdateController(self.journal, self.runner, site, ports, reports, InlineJobs())
        self.controller.recover(clean=clean)

    def restart(self, *, clean: bool = False, boot: str | None = None) -> None:
        self.journal.close()
        if boot:
            self.boot = boot
        self.start(clean=clean)

    def timer(self) -> Timer:
        return Timer(self.clock.now(), self.clock.monotonic(), self.boot)

    def seal(self, report: Report) -> bytes:
        self.sent.append(report)
        return report.canonical()

    def directive(self, *models: DesiredModel) -> Directive:
        self.generation += 1
        now = self.clock.now()
        return Directive(
            site=ME.site,
            spoke=ME.spoke,
            zone="eu",
            generation=self.generation,
            issued=now,
            expires=now + timedelta(days=7),
            models=models,
        )

    def desired(
        self, version: int, *, rollout: str | None = None, shadow: object = None, probation: object = None
    ) -> DesiredModel:
        index = self.hub.versions.get(version) or self.hub.publish(version)
        return DesiredModel(
            model="digits",
            version=version,
            index=index,
            rollout=rollout,
            shadow=shadow or ShadowTerms(),
            probation=probation or ProbationTerms(soak_s=10),
        )

    def want(self, version: int, **terms: object) -> None:
        self.controller.follow(self.directive(self.desired(version, **terms)))

    def run(self, seconds: float = 0.0, *, step: float = 1.0) -> None:
        self.controller.tick()
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step
            self.controller.tick()

    def settle(self, limit: float = 600.0) -> None:
        """Run until nothing is under way, cutting and restarting as told."""
        while limit > 0:
            try:
                self.controller.tick()
                if self.controller.idle():
                    return
            except PowerCut:
                self.restart()
            self.clock.advance(1)
            limit -= 1
        raise AssertionError(f"still busy: {self.chain()}")

    def want_until_cut(self, version: int) -> None:
        """Ask for a version and go on until the power fails."""
        with suppress(PowerCut):
            self.want(version)
            self.settle_without_restart()
            raise AssertionError("the power did not fail")

    def settle_without_restart(self, limit: float = 600.0) -> None:
        while limit > 0 and not self.controller.idle():
            self.clock.advance(1)
            limit -= 1
            self.controller.tick()

    def install(self, version: int) -> None:
        self.want(version)
        self.settle()
        assert self.champion() == version
        self.sent.clear()

    def champion(self) -> int | None:
        found = read_slots(self.slots).models.get("digits", ModelSlots()).champion
        return found.version if found else None

    def model_slots(self) -> ModelSlots:
        return read_slots(self.slots).models.get("digits", ModelSlots())

    def chain(self) -> list[str]:
        return [str(r.state) for r in self.sent]

    def last(self) -> Report:
        return self.sent[-1]


class CutRunner(StepRunner):
    """Steps whose power fails where the rig says, once each."""

    def __init__(self, rig: Rig, **ports: object) -> None:
        super().__init__(**ports)
        self._rig = rig

    def enter(self, update):
        self._maybe("before_enter", update.state)
        seen = super().enter(update)
        self._maybe("after_enter", update.state)
        return seen

    def work(self, update, cancel: threading.Event):
        self._maybe("before_work", update.state)
        outcome = super().work(update, cancel)
        self._maybe("after_work", update.state)
        return outcome

    def _maybe(self, where: str, state: State) -> None:
        self._rig.at = str(state)
        if (where, state) in self._rig.cut_at:
            self._rig.cut_at.discard((where, state))
            raise PowerCut

"""Executes the steps of an update (`step_planner.py` says which, in each state). One method a kind of step.

Every step is safe to begin again: it looks at what is there before it acts. A step that is done lets the next one begin. Any
other result ends the round: an outcome is the event that leaves the state, None means to ask again.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from model_formats.core.errors import HubError, SpokeshaveError
from model_formats.package import Package, block_hashes, closure, missing, open_package
from model_formats.package.image_layout import PackageIncomplete, PackageTampered
from model_formats.package.oci import Descriptor, PackageInvalid
from spoke_agent.server_api.errors import ServerUnreachable
from spoke_agent.server_api.messages import LoadedState, ModelState, ModelStats, RoleStats
from spoke_agent.site.slots import ModelSlots, Slot, edit_slots, read_slots
from spoke_agent.update import admission
from spoke_agent.update.acceptance import ProbationCounts, ShadowCounts, Verdict, judge_probation, judge_shadow
from spoke_agent.update.admission import OFF, Capacity, Choice
from spoke_agent.update.arrivals import Arrivals
from spoke_agent.update.delta import by_delta, offer_for
from spoke_agent.update.environment import UpdatePorts, UpdateSite
from spoke_agent.update.interfaces import FetchRequest, Release
from spoke_agent.update.state_machine import Event
from spoke_agent.update.step_planner import FETCHES, plan_entry, plan_work
from spoke_agent.update.steps import Step, StepKind
from spoke_agent.update.update import Update
from sync.core.types import Reason, State
from sync.protocol.messages import DesiredModel
from sync.store import DiskFailed, DiskFull, disk_errors
from sync.transfer.limits import BudgetExhausted

__all__ = ["Done", "RetryLater", "StepOutcome", "StepRunner"]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """How a step ended."""

    event: Event
    reason: Reason = Reason.NONE
    detail: str = ""
    variant: str | None = None
    counts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The step could not be done now, through nobody's fault here; it is tried again after a pause."""

    why: str
    counts: Mapping[str, object] = field(default_factory=dict)
    reason: Reason = Reason.NONE
    """What to say when the time for the step runs out meanwhile; BUDGET_EXHAUSTED is no failed try."""


@dataclass(frozen=True, slots=True)
class Done:
    """The step is done; the next one of the plan may begin."""

    counts: Mapping[str, object] = field(default_factory=dict)
    """Evidence that it gathered."""


_Seen = StepOutcome | RetryLater | None
_Result = _Seen | Done
_START_SLACK_S = 2.0
"""The two processes' clocks are read a moment apart."""


class StepRunner:
    """Runs on job threads, at most one for a model at a time."""

    def __init__(self, site: UpdateSite, ports: UpdatePorts, arrivals: Arrivals) -> None:
        self._zone, self._regime, self._hours, self._slots = site.zone, site.regime, site.hours, site.slots
        self._capacity, self._timer = site.capacity, site.timer
        self._store, self._trust, self._transport, self._server = ports.store, ports.trust, ports.transport, ports.server
        self._labels, self._arrivals = ports.labels, arrivals
        self._shortcuts: set[str] = set()
        self._run: Mapping[StepKind, Callable[[Update, threading.Event], _Result]] = {
            StepKind.WAIT_FOR_HOURS: lambda _update, _cancel: None,
            StepKind.FETCH_METADATA: self._fetch_metadata,
            StepKind.ADMIT: self._admit,
            StepKind.FREE_CANDIDATE: self._free_candidate,
            StepKind.FETCH_VARIANT: self._fetch_variant,
            StepKind.VERIFY: self._verify,
            StepKind.SET_CANDIDATE: self._set_candidate,
            StepKind.COMPARE: self._compare,
            StepKind.SWITCH: self._switch,
            StepKind.OBSERVE: self._observe,
            StepKind.COMMIT: self._commit,
            StepKind.GO_BACK: self._go_back,
            StepKind.CLEAR_CANDIDATE: self._clear_candidate,
            StepKind.RETIRE: self._retire,
            StepKind.FOLLOW_SLOTS: self._follow_slots,
            StepKind.COLLECT: self._collect,
        }

    def enter(self, update: Update) -> dict[str, object]:
        """Do the first act; returns evidence seen. Raises ServerUnreachable when the server is away (what is on disk is done)."""
        seen: dict[str, object] = {}
        for step in plan_entry(update):
            result = self._run[step.kind](update, threading.Event())
            seen |= result.counts if isinstance(result, Done) else {}
        return seen

    def work(self, update: Update, cancel: threading.Event) -> _Seen:
        """Do, or look at, the work of an active state. Refusals and faults come as outcomes, not as exceptions."""
        try:
            return self._through(update, plan_work(update, self._hours.waits()), cancel)
        except SpokeshaveError as e:
            return _outcome_of(e)

    def _through(self, update: Update, plan: Sequence[Step], cancel: threading.Event) -> _Seen:
        """One step after the other; the state is passed when all are done."""
        with self._arrivals.fetching(update.desired.index) if FETCHES & {s.kind for s in plan} else contextlib.nullcontext():
            seen: dict[str, object] = {}
            for step in plan:
                result = self._run[step.kind](update.seen(**seen), cancel)
                if not isinstance(result, Done):
                    return result
                if cancel.is_set():
                    return None
                seen |= result.counts
        return StepOutcome(Event.PASSED, counts=seen)

    def look(self, update: Update) -> _Seen:
        """Whether the committed version still runs here: None when it does, OTHER_VARIANT when it is off on this machine now."""
        try:
            role = self._stats(update.model).champion
            if role is not None and role.index == update.desired.index:
                return None
            loaded = _of(self._server.reconcile().models, update.model).champion
        except ServerUnreachable as e:
            return RetryLater(e.message)
        reason, detail = _fault_of(loaded) if loaded is not None else (Reason.NONE, "")
        return StepOutcome(Event.OTHER_VARIANT, reason, detail) if reason in OFF else None

    # ---- before the switch

    def _fetch_metadata(self, update: Update, cancel: threading.Event) -> Done:
        return self._received(update, self._complete(update, self._release(update), None, cancel))

    def _admit(self, update: Update, _cancel: threading.Event) -> StepOutcome:
        package = open_package(self._store, update.desired.index)
        if (package.spec.model, package.spec.version) != (update.model, update.desired.version):
            return StepOutcome(
                Event.REFUSED, Reason.PACKAGE_INVALID, f"the package says {package.spec.model}@{package.spec.version}"
            )
        forbidden = admission.residency(package.spec, self._zone, self._regime)
        if forbidden is not Reason.NONE:
            return StepOutcome(Event.REFUSED, forbidden, "package.json: residency")
        choice, capacity = self._choice(package, _tried(update))
        counts: dict[str, object] = {"cpu_class": capacity.cpu_class, "passed_over": choice.passed_over}
        if choice.variant is None:
            return StepOutcome(Event.REFUSED, choice.reason, "no variant fits this machine", counts=counts)
        total, received = self._total(package, choice.variant), update.evidence.bytes_received
        counts |= {"variant": choice.variant, "bytes_received": received, "bytes_total": total}
        return StepOutcome(Event.PASSED, variant=choice.variant, counts=counts)

    def _choice(self, package: Package, off: Mapping[str, Reason]) -> tuple[Choice, Capacity]:
        here, capacity = frozenset(self._store.digests()), self._capacity()
        sizes = {v.name: admission.download_size(package.files, v, here) for v in package.spec.variants}
        return admission.choose(package.spec, package.evidence, sizes, capacity, off), capacity

    def _another(self, update: Update, reason: Reason, detail: str) -> StepOutcome:
        """The chosen variant is off here: go on with the next one that fits, or end when none is left."""
        package = open_package(self._store, update.desired.index)
        choice, _ = self._choice(package, {**_tried(update), _variant_of(update): reason})
        counts: dict[str, object] = {"passed_over": choice.passed_over, "variant": choice.variant, "engine": None, "mode": None}
        if choice.variant is None:
            return StepOutcome(Event.FAULT, choice.reason, detail, counts=counts)
        mine = package.variant(choice.variant).files
        counts["bytes_total"] = update.evidence.bytes_total + sum(package.files[name].size for name in mine)
        return StepOutcome(Event.OTHER_VARIANT, reason, detail, variant=choice.variant, counts=counts)

    def _total(self, package: Package, variant: str) -> int:
        """Bytes of a variant with all that belongs to every variant."""
        mine = set(package.variant(variant).files)
        blobs = closure(self._store, package.index)
        return sum(d.size for d in blobs if d.path is None or d.path in mine or not d.path.startswith("variants/"))

    def _free_candidate(self, update: Update, _cancel: threading.Event) -> Done:
        self._edit(update.model, lambda m: _without_other_variant(m, update))
        return Done()

    def _fetch_variant(self, update: Update, cancel: threading.Event) -> Done:
        done = self._received(update, self._complete(update, self._release(update), _variant_of(update), cancel))
        return Done({**done.counts, "used_delta": update.desired.index in self._shortcuts})

    def _verify(self, update: Update, _cancel: threading.Event) -> Done:
        self._trust.contents(self._store, update.desired, _current(update), _variant_of(update))
        package = open_package(self._store, update.desired.index)
        return Done({"claimed_accuracy": _share(package.evidence.claim(_variant_of(update)))})

    def _set_candidate(self, update: Update, _cancel: threading.Event) -> Done:
        self._edit(update.model, lambda m: m.replace(candidate=_slot(update)))
        return Done()

    def _compare(self, update: Update, _cancel: threading.Event) -> _Seen:
        stats = self._stats(update.model)
        if stats.candidate is None or stats.candidate.index != update.desired.index:
            return self._load(update, "candidate")
        seen = ShadowCounts(
            rows=stats.shadow.rows,
            disagreements=stats.shadow.disagreements,
            errors=stats.shadow.errors,
            latency_ratio=_ratio(stats.candidate, stats.champion),
            waited_s=update.entered.elapsed(self._timer()),
            compared=stats.champion is not None,
        )
        counts = {
            "shadow_rows": seen.rows,
            "shadow_disagreements": seen.disagreements,
            "latency_ratio": seen.latency_ratio,
            "engine": stats.candidate.engine,
            "mode": stats.candidate.mode,
        }
        return _judged(judge_shadow(update.desired.shadow, seen), counts)

    # ---- the switch, and after

    def _switch(self, update: Update, _cancel: threading.Event) -> Done:
        def switched(m: ModelSlots) -> ModelSlots:
            return m.replace(champion=_slot(update), last_good=update.base, candidate=None, probation=True)

        self._edit(update.model, switched)
        return Done()

    def _observe(self, update: Update, _cancel: threading.Event) -> _Seen:
        answer, waited = self._server.stats(), update.entered.elapsed(self._timer())
        if answer.uptime_s + _START_SLACK_S < waited:
            return StepOutcome(Event.CRASHED, Reason.CRASHED_IN_PROBATION, "the server started anew during probation")
        role = answer.models.get(update.model, ModelStats()).champion
        index, base = update.desired.index, update.base
        if role is None or role.index != index:
            return self._load(update, "champion")
        labelled, correct = self._labels.labelled_accuracy(update.model, index, update.entered.wall)
        before = self._labels.labelled_accuracy(update.model, base.index) if base else (0, 0)
        seen = ProbationCounts(
            requests=role.requests,
            errors=role.errors,
            labelled=labelled,
            correct=correct,
            champion_labelled=before[0],
            champion_correct=before[1],
            claim=update.evidence.claimed_accuracy,
            waited_s=waited,
        )
        counts = {
            "probation_requests": seen.requests,
            "probation_errors": seen.errors,
            "labelled": labelled,
            "labelled_correct": correct,
            "champion_labelled": before[0],
            "champion_labelled_correct": before[1],
        }
        return _judged(judge_probation(update.desired.probation, seen), counts)

    def _commit(self, update: Update, _cancel: threading.Event) -> Done:
        def committed(m: ModelSlots) -> ModelSlots:
            return m.replace(probation=False, candidate=None, challenger=m.challenging)

        self._edit(update.model, committed)
        return Done()

    def _go_back(self, update: Update, _cancel: threading.Event) -> Done:
        def back(m: ModelSlots) -> ModelSlots:
            return m.replace(champion=update.base, last_good=update.base, candidate=None, probation=False)

        self._edit(update.model, back)
        return Done()

    def _clear_candidate(self, update: Update, _cancel: threading.Event) -> Done:
        self._edit(update.model, lambda m: m.replace(candidate=None))
        return Done()

    def _retire(self, update: Update, _cancel: threading.Event) -> Done:
        self._edit(update.model, lambda _m: ModelSlots())
        return Done()

    def _follow_slots(self, update: Update, _cancel: threading.Event) -> Done:
        self._server.reconcile()
        if update.state is not State.ROLLED_BACK or update.evidence.rollback_ms is not None:
            return Done()
        took_s = update.fault_at.elapsed(self._timer()) if update.fault_at else 0.0
        return Done({"rollback_ms": round(took_s * 1000)})

    def _collect(self, update: Update, _cancel: threading.Event) -> Done:
        self.collect(update.model)
        return Done()

    def _load(self, update: Update, role: Literal["candidate", "champion"]) -> _Seen:
        """Have the server load a slot, checked by it with the golden vectors; a fault when it cannot."""
        loaded = getattr(_of(self._server.reconcile().models, update.model), role)
        if loaded is None or loaded.index != update.desired.index:
            return RetryLater("the server does not follow slots.json")
        reason, detail = _fault_of(loaded)
        if reason is Reason.NONE:
            return None
        if role == "candidate" and reason in OFF:
            return self._another(update, reason, detail)
        return StepOutcome(Event.FAULT, reason, detail)

    # ---- the store

    def collect(self, model: str | None = None) -> int:
        """Remove every blob that no slot needs; returns the bytes freed. Does nothing while another model's update is on its way:
        no slot names what has arrived of it."""
        if self._arrivals.forbid_collection(model):
            return 0
        slots, keep = read_slots(self._slots), set[str]()
        for index in slots.pinned():
            keep.add(index)
            with contextlib.suppress(PackageIncomplete, PackageInvalid, PackageTampered):  # the server says what is wrong with it
                keep.update(d.digest for d in closure(self._store, index))
        with disk_errors(self._slots):
            return self._store.gc(keep)

    # ---- inside

    def _received(self, update: Update, size: int) -> Done:
        return Done({"bytes_received": update.evidence.bytes_received + size})

    def _release(self, update: Update) -> Release:
        return self._trust.release(update.desired, _current(update))

    def _complete(self, update: Update, release: Release, variant: str | None, cancel: threading.Event) -> int:
        """Fetch until nothing is missing (metadata only without `variant`), or until cancelled; returns the bytes received."""
        desired, received = update.desired, 0
        while not cancel.is_set():
            wanted = missing(self._store, desired.index, release.index_size, variant)
            if not wanted and not self._store.has(release.signature.digest):
                wanted = [release.signature]
            if not wanted:
                break
            for blob in wanted:
                received += self._fetch(desired, blob, cancel)
                if cancel.is_set():
                    break
        return received

    def _fetch(self, desired: DesiredModel, blob: Descriptor, cancel: threading.Event) -> int:
        hashes, progress = block_hashes(self._store, desired.index, blob.digest), self._arrivals.progress(desired.model)
        request = FetchRequest(desired, blob, self._store, cancel, hashes, progress)
        offer = offer_for(desired, blob, self._store)
        if offer is not None:
            received = by_delta(offer, request, self._transport)
            if received is not None:
                self._shortcuts.add(desired.index)
                return received
        try:
            return self._transport.fetch(request)
        finally:
            self._arrivals.arrived(desired.model)

    def _edit(self, model: str, change: Callable[[ModelSlots], ModelSlots]) -> None:
        with disk_errors(self._slots):
            edit_slots(self._slots, model, change)

    def _stats(self, model: str) -> ModelStats:
        return self._server.stats().models.get(model, ModelStats())


def _outcome_of(error: SpokeshaveError) -> StepOutcome | RetryLater:
    if error.retryable or isinstance(error, PackageIncomplete | DiskFailed | ServerUnreachable):
        return RetryLater(error.message, reason=Reason.BUDGET_EXHAUSTED if isinstance(error, BudgetExhausted) else Reason.NONE)
    reason = getattr(error, "reason", None)
    if isinstance(reason, Reason):
        return StepOutcome(Event.FAULT if isinstance(error, HubError) else Event.REFUSED, reason, error.message)
    if isinstance(error, PackageInvalid):
        return StepOutcome(Event.REFUSED, Reason.PACKAGE_INVALID, error.message)
    if isinstance(error, PackageTampered):
        return StepOutcome(Event.FAULT, Reason.PACKAGE_TAMPERED, error.message)
    if isinstance(error, DiskFull):
        return StepOutcome(Event.FAULT, Reason.DISK_FULL, error.message)
    raise error


def _judged(verdict: Verdict, counts: dict[str, Any]) -> _Seen:
    if verdict.wait:
        return None
    return StepOutcome(Event.PASSED if verdict.passed else Event.FAULT, verdict.reason, counts=counts)


def _slot(update: Update) -> Slot:
    return Slot(version=update.desired.version, index=update.desired.index, variant=_variant_of(update))


def _without_other_variant(m: ModelSlots, update: Update) -> ModelSlots:
    """The place of the candidate is free again while another variant of its version is on its way."""
    ours = m.candidate is not None and m.candidate.index == update.desired.index
    return m.replace(candidate=None) if ours and m.candidate != _slot(update) else m


def _tried(update: Update) -> dict[str, Reason]:
    """Variants that were tried here and were off. What the machine lacked is looked at anew."""
    return {p.variant: p.reason for p in update.evidence.passed_over if p.reason in OFF}


def _variant_of(update: Update) -> str:
    if update.variant is None:
        raise PackageInvalid(f"{update.model}: no variant was chosen", hint="Send the directive again.")
    return update.variant


def _current(update: Update) -> int | None:
    return update.base.version if update.base else None


def _of(models: Mapping[str, ModelState], model: str) -> ModelState:
    return models.get(model, ModelState())


def _ratio(candidate: RoleStats, champion: RoleStats | None) -> float | None:
    if champion is None or not champion.latency_ms or candidate.latency_ms is None:
        return None
    return candidate.latency_ms / champion.latency_ms


def _fault_of(loaded: LoadedState) -> tuple[Reason, str]:
    if loaded.golden is not None and not loaded.golden.ok:
        return Reason.GOLDEN_MISMATCH, loaded.golden.detail
    if loaded.loaded:
        return Reason.NONE, ""
    return (Reason.LOAD_FAILED if loaded.reason is Reason.NONE else loaded.reason), loaded.detail


def _share(claim: float | None) -> float | None:
    return claim if claim is not None and 0 <= claim <= 1 else None

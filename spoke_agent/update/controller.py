"""Drives every model's update through the machine: save, act, report; look again at the next tick.

The order is always the same: the transition is saved with the draft of its report, then the state's first act is done, then the
report is signed with what is served *then*. Whatever is interrupted is done again from the saved state.
"""

import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from model_formats.core.errors import SpokeshaveError
from spoke_agent.server_api.errors import ServerUnreachable
from spoke_agent.site.slots import ModelSlots, edit_slots, read_slots
from spoke_agent.update.background import BackgroundJob, Jobs
from spoke_agent.update.environment import UpdatePorts, UpdateSite
from spoke_agent.update.executor import RetryLater, StepOutcome, StepRunner
from spoke_agent.update.journal import Draft, Journal, UnreadableRow
from spoke_agent.update.planner import cancel_reason, next_event
from spoke_agent.update.reports import ReportWriter
from spoke_agent.update.state_machine import ACTIVE, MAX_SAVES, Event, next_state
from spoke_agent.update.step_planner import RESUMABLE, plan_entry
from spoke_agent.update.update import Update, fresh
from sync.core.types import TERMINAL, Reason, State
from sync.protocol.messages import DesiredModel, Directive
from sync.store import DiskFailed, DiskFull

__all__ = ["UpdateController"]

_SWITCHED = frozenset({State.PROBATION, State.COMMITTED, State.ROLLED_BACK})
"""States in which `slots.json` may still say probation, since their first act is to change it."""
ENTER_PATIENCE_S = 60.0
"""How long a report waits for a server that is away before it is sent without `serving`."""


@dataclass(slots=True)
class _RunState:
    """What the process remembers of a model between ticks; none of it is needed after a restart."""

    job: BackgroundJob[StepOutcome | RetryLater | None] | None = None
    waits_for: Reason = Reason.NONE
    tries: int = 0
    next_at: float = 0.0
    entering_since: float | None = None
    why: str = ""
    """Why it waits, for `spoke status`."""
    counts: dict[str, object] = field(default_factory=dict)


class UpdateController:
    """Used from one thread; the steps run as jobs."""

    def __init__(
        self,
        journal: Journal,
        runner: StepRunner,
        site: UpdateSite,
        ports: UpdatePorts,
        reports: ReportWriter,
        jobs: Jobs,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """`wake` is called from any thread when a job ends."""
        self._journal, self._runner, self._reports = journal, runner, reports
        self._slots, self._settings, self._timer = site.slots, site.settings, site.timer
        self._trust, self._server, self._jobs, self._wake = ports.trust, ports.server, jobs, wake
        self._directive = journal.directive()
        self._run_states: dict[str, _RunState] = {}
        self._looked: set[str] = set()
        """Models whose committed version was seen to run here since this process started."""

    # ---- from outside

    @property
    def directive(self) -> Directive | None:
        """What is being followed."""
        return self._directive

    def follow(self, directive: Directive) -> None:
        """Follow a verified directive from now on. A running transfer that it makes needless stops within a second."""
        self._journal.accept(directive)
        self._directive = directive
        self.tick()

    def recover(self, *, clean: bool) -> None:
        """Take up every update where the last process left it. `clean`: it had stopped in good order."""
        for model, found in self._journal.updates().items():
            if isinstance(found, UnreadableRow):
                self._to_last_good(model)
            elif found.state in ACTIVE:
                event = _restart_event(found, clean=clean)
                crashes = found.crashes + (0 if clean or found.state is not State.PROBATION else 1)
                self._move(replace(found, crashes=crashes), event, _restart_reason(event))
        for model, model_slots in read_slots(self._slots).models.items():
            update = self._journal.update(model)
            if model_slots.probation and not (isinstance(update, Update) and update.state in _SWITCHED):
                self._to_last_good(model)

    def tidy(self) -> None:
        """Remove blobs that nothing needs: a power cut brings files back whose removal had not reached the disk.

        Not while an update is under way, or one has ended that the next may go on from.
        """
        found = self._journal.updates().values()
        if all(isinstance(u, Update) and u.state not in ACTIVE and u.reason not in RESUMABLE for u in found):
            with contextlib.suppress(DiskFailed):  # as before; the next update that ends well tries again
                self._runner.collect()

    def remark(self, reason: Reason) -> None:
        """Report that something was turned away (a directive, metadata), by the side of the first model's present state."""
        found = next((u for _, u in sorted(self._journal.updates().items()) if isinstance(u, Update)), None)
        if found:
            self._journal.note(found, reason)

    def deny(self, denied: frozenset[str]) -> None:
        """Stop serving what the deny list names, where there is something better to go back to."""
        for model, model_slots in read_slots(self._slots).models.items():
            found, back = self._journal.update(model), model_slots.last_good
            if not isinstance(found, Update) or model_slots.champion is None or model_slots.champion.index not in denied:
                continue
            if found.state is State.PROBATION:
                self._move(found, Event.FAULT, Reason.DENIED)
            elif found.state is State.COMMITTED and back and back.index not in denied:
                self._move(replace(found, base=back), Event.REVERTED, Reason.DENIED)

    def tick(self) -> None:
        """Look at every model once; starts, polls and ends jobs."""
        for model in sorted(self._models()):
            while self._advance(model):
                pass

    def stop(self) -> None:
        """Cancel all jobs. The states stay; the next start goes on from them."""
        for run_state in self._run_states.values():
            if run_state.job:
                run_state.job.cancel()

    def idle(self) -> bool:
        """Whether nothing is under way: every model is where the directive wants it, or will go no further."""
        return not any(self._busy(model) for model in self._models())

    def waiting_for(self, model: str) -> str:
        """Why a model's update does not move right now; empty when it does."""
        return self._run_states[model].why if model in self._run_states else ""

    # ---- one step of one model

    def _advance(self, model: str) -> bool:
        """Do the next thing; True when something changed and it is worth looking again at once."""
        found = self._journal.update(model)
        if isinstance(found, UnreadableRow):
            self._to_last_good(model)
            return True
        drafts = [d for d in self._journal.drafts() if d.model == model]
        if found and drafts:
            return self._settle(found, drafts)
        event = next_event(found, self._model_slots(model), self._desired(model))
        if event is not None:
            return self._begin(found, model, event)
        if found and found.state is State.COMMITTED and model not in self._looked:
            return self._look(found)
        return self._work(self._with_new_terms(found)) if found and found.state in ACTIVE else False

    def _begin(self, found: Update | None, model: str, event: Event) -> bool:
        desired, run_state = self._desired(model), self._run_state_of(model)
        if event is Event.CANCELLED and found:
            self._stop_job(run_state)
            return self._move(found, event, cancel_reason(found, desired))
        if event is Event.REVERTED and found and desired:
            if self._may_go_back(found, desired):
                return self._move(replace(found, base=self._model_slots(model).last_good), event, Reason.REVERTED_BY_HUB)
            event = Event.OFFERED
        if event is Event.RETIRED:
            return self._move(found, event, Reason.CANCELLED) if found else self._retire(model)
        if desired is None:
            return False
        state = found.state if found else State.IDLE
        base = self._model_slots(model).champion
        update = replace(fresh(desired, self._generation, self._timer(), base=base), state=state)
        if event is Event.CONFIRMED and base:
            update = replace(update, variant=base.variant)
        return self._move(update, event, Reason.NONE)

    def _with_new_terms(self, update: Update) -> Update:
        """A newer directive may change the terms of the version that is on its way; that does not begin it again."""
        desired = self._desired(update.model)
        if desired is None or desired == update.desired:
            return update
        update = replace(update, desired=desired, generation=self._generation)
        self._journal.amend(update)
        return update

    def _work(self, update: Update) -> bool:
        run_state = self._run_state_of(update.model)
        if update.entered.elapsed(self._timer()) > self._limit(update):
            self._stop_job(run_state)
            reason = Reason.TIMEOUT if run_state.waits_for is Reason.NONE else run_state.waits_for
            return self._move(update.seen(**run_state.counts), Event.TIMED_OUT, reason)
        if run_state.job is None:
            if self._timer().monotonic >= run_state.next_at:
                run_state.job = self._jobs.start(lambda cancel: self._runner.work(update, cancel), self._wake)
            if run_state.job is None or not run_state.job.done:
                return False
        if not run_state.job.done:
            return False
        job, run_state.job = run_state.job, None
        return self._judge(update, run_state, job.result())

    def _look(self, update: Update) -> bool:
        """Once after a start, which may be on other hardware. A version that is off here now gives its place to last-good, which
        answers for it already; the directive then brings it back, in another variant.
        """
        run_state = self._run_state_of(update.model)
        if run_state.job is None and self._timer().monotonic >= run_state.next_at:
            run_state.job = self._jobs.start(lambda _cancel: self._runner.look(update), self._wake)
        if run_state.job is None or not run_state.job.done:
            return False
        job, run_state.job = run_state.job, None
        seen = job.result()
        if isinstance(seen, RetryLater):
            run_state.next_at = self._timer().monotonic + self._settings.tick_s
            return False
        self._looked.add(update.model)
        if seen is None:
            return False
        edit_slots(self._slots, update.model, lambda m: m.replace(champion=m.last_good, candidate=None, probation=False))
        return True

    def _judge(self, update: Update, run_state: _RunState, seen: StepOutcome | RetryLater | None) -> bool:
        if seen is None:
            run_state.next_at = self._timer().monotonic + self._settings.tick_s
            return False
        if isinstance(seen, RetryLater):
            return self._try_again(update, run_state, seen)
        update = replace(update.seen(**seen.counts), variant=seen.variant or update.variant)
        if seen.event is Event.CRASHED and update.crashes == 0:
            return self._move(replace(update, crashes=1), Event.RESTARTED, Reason.CRASHED_IN_PROBATION)
        return self._move(update, seen.event, seen.reason)

    def _try_again(self, update: Update, run_state: _RunState, seen: RetryLater) -> bool:
        run_state.why, run_state.waits_for = seen.why, seen.reason
        run_state.counts.update(seen.counts)
        if seen.reason is Reason.BUDGET_EXHAUSTED:
            run_state.next_at = self._timer().monotonic + self._settings.retry_cap_s
            return False
        run_state.tries += 1
        if run_state.tries >= self._settings.transfer_tries:
            return self._move(update.seen(**run_state.counts), Event.FAULT, Reason.TRANSFER_FAILED)
        pause = min(self._settings.retry_cap_s, self._settings.retry_s * 2 ** min(run_state.tries - 1, 16))
        run_state.next_at = self._timer().monotonic + pause * (0.5 + secrets.randbelow(1000) / 1000)
        return False

    def _move(self, update: Update, event: Event, reason: Reason) -> bool:
        """Save a transition. One that would be the 28th save ends the update instead."""
        previous, then = update.state, next_state(update.state, event)
        if then not in TERMINAL and then is not State.IDLE and update.saves + 1 >= MAX_SAVES:
            event, reason = Event.EXHAUSTED, Reason.SAVES_EXHAUSTED
            then = next_state(previous, event)
        now = self._timer()
        fault_at = now if then is State.ROLLED_BACK else None
        moved = replace(update, state=then, reason=reason, entered=now, saves=update.saves + 1, fault_at=fault_at)
        self._journal.save(moved, previous=previous, event=event)
        self._run_states[update.model] = _RunState()
        self._looked.add(update.model)
        return True

    # ---- first acts and reports

    def _settle(self, update: Update, drafts: list[Draft]) -> bool:
        """Do the state's first act, then sign what waits. False when the server has to come back first."""
        run_state = self._run_state_of(update.model)
        try:
            seen = self._runner.enter(update) if plan_entry(update) else {}
        except (ServerUnreachable, DiskFull, DiskFailed) as e:
            run_state.why = e.message
            if not self._out_of_patience(update, run_state):
                return False
            seen = {}
        if seen:
            update = update.seen(**seen)
            self._journal.amend(update)
        for sequence, envelope in self._reports.write(update, drafts):
            self._journal.seal(sequence, envelope)
        return True

    def _out_of_patience(self, update: Update, run_state: _RunState) -> bool:
        """A commit is never reported while nobody serves it; all else is, after a while."""
        now = self._timer().monotonic
        run_state.entering_since = run_state.entering_since if run_state.entering_since is not None else now
        return update.state is not State.COMMITTED and now - run_state.entering_since >= ENTER_PATIENCE_S

    # ---- the safe side

    def _to_last_good(self, model: str) -> None:
        """Nothing is known for sure: what was good before is served, and the directive brings the rest back."""

        def back(m: ModelSlots) -> ModelSlots:
            champion = m.last_good if m.probation else m.champion
            return m.replace(champion=champion, candidate=None, probation=False)

        edit_slots(self._slots, model, back)
        self._journal.forget(model)
        self._run_states.pop(model, None)
        desired = self._desired(model)
        if desired is not None:
            lost = fresh(desired, self._generation, self._timer(), base=self._model_slots(model).champion)
            self._move(lost, Event.UNREADABLE, Reason.STATE_UNKNOWN)

    def _retire(self, model: str) -> bool:
        edit_slots(self._slots, model, lambda _m: ModelSlots())
        return True

    def _may_go_back(self, found: Update, desired: DesiredModel) -> bool:
        try:
            self._trust.release(desired, found.desired.version)
        except SpokeshaveError:  # the way of a new update tells why
            return False
        return True

    # ---- inside

    def _models(self) -> set[str]:
        wanted = {m.model for m in self._directive.models} if self._directive else set()
        return wanted | self._journal.updates().keys() | (read_slots(self._slots).models.keys() if self._directive else set())

    def _busy(self, model: str) -> bool:
        found = self._journal.update(model)
        if not isinstance(found, Update):
            return self._desired(model) is not None
        pending = any(d.model == model for d in self._journal.drafts())
        return pending or found.state in ACTIVE or next_event(found, self._model_slots(model), self._desired(model)) is not None

    def _desired(self, model: str) -> DesiredModel | None:
        if self._directive is None:
            found = self._journal.update(model)
            return found.desired if isinstance(found, Update) else None
        return next((m for m in self._directive.models if m.model == model), None)

    @property
    def _generation(self) -> int:
        return self._directive.generation if self._directive else 0

    def _model_slots(self, model: str) -> ModelSlots:
        return read_slots(self._slots).models.get(model, ModelSlots())

    def _run_state_of(self, model: str) -> _RunState:
        return self._run_states.setdefault(model, _RunState())

    def _stop_job(self, run_state: _RunState) -> None:
        if run_state.job:
            run_state.job.cancel()
            run_state.job = None

    def _limit(self, update: Update) -> float:
        s, shadow, probation = self._settings, update.desired.shadow, update.desired.probation
        limits: Mapping[State, float] = {
            State.ADMITTED: s.admit_timeout_s,
            State.STAGING: s.stage_timeout_s,
            State.VERIFIED: s.verify_timeout_s,
            State.SHADOW: shadow.max_wait_s + s.step_margin_s,
            State.ARMED: s.arm_timeout_s,
            State.PROBATION: probation.soak_s + probation.max_wait_s + s.step_margin_s,
        }
        return limits[update.state]


def _restart_event(update: Update, *, clean: bool) -> Event:
    second = update.state is State.PROBATION and update.crashes >= 1 and not clean
    return Event.CRASHED if second else Event.RESTARTED


def _restart_reason(event: Event) -> Reason:
    return Reason.CRASHED_IN_PROBATION if event is Event.CRASHED else Reason.NONE

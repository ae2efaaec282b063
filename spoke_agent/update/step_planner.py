"""Which steps an update takes in each state, and what lies ahead. Pure: the runner and `spoke status --plan` both read it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from model_formats.core.document import Value
from spoke_agent.site.slots import ModelSlots
from spoke_agent.site.time_window import Waits
from spoke_agent.update.planner import cancel_reason, next_event
from spoke_agent.update.state_machine import ACTIVE, Event, next_state
from spoke_agent.update.steps import Step, StepKind
from spoke_agent.update.update import Timer, Update, fresh
from sync.core.types import Reason, State
from sync.protocol.messages import DesiredModel

__all__ = ["FETCHES", "RESUMABLE", "PlannedState", "plan_ahead", "plan_entry", "plan_work"]

RESUMABLE = frozenset({Reason.TRANSFER_FAILED, Reason.TIMEOUT, Reason.BUDGET_EXHAUSTED})
"""What has arrived stays for the next try; the next update that ends well tidies up."""
_ENTRIES: Mapping[State, tuple[StepKind, ...]] = {
    State.PROBATION: (StepKind.SWITCH, StepKind.FOLLOW_SLOTS),
    State.COMMITTED: (StepKind.COMMIT, StepKind.COLLECT, StepKind.FOLLOW_SLOTS),
    State.ROLLED_BACK: (StepKind.GO_BACK, StepKind.FOLLOW_SLOTS, StepKind.COLLECT),
    State.FAILED: (StepKind.CLEAR_CANDIDATE, StepKind.COLLECT, StepKind.FOLLOW_SLOTS),
    State.REJECTED: (StepKind.CLEAR_CANDIDATE, StepKind.COLLECT, StepKind.FOLLOW_SLOTS),
    State.IDLE: (StepKind.RETIRE, StepKind.COLLECT, StepKind.FOLLOW_SLOTS),
}
_WORKS: Mapping[State, tuple[StepKind, ...]] = {
    State.ADMITTED: (StepKind.FETCH_METADATA, StepKind.ADMIT),
    State.STAGING: (StepKind.FREE_CANDIDATE, StepKind.FETCH_VARIANT),
    State.VERIFIED: (StepKind.VERIFY,),
    State.SHADOW: (StepKind.SET_CANDIDATE, StepKind.COMPARE),
    State.ARMED: (),
    State.PROBATION: (StepKind.OBSERVE,),
}
FETCHES = frozenset({StepKind.FETCH_METADATA, StepKind.FETCH_VARIANT})
"""While these run, and what belongs to them, nothing is collected."""
_ENDED_BEFORE = frozenset({State.FAILED, State.REJECTED})
_ABOUT_A_VARIANT = frozenset({StepKind.FETCH_VARIANT, StepKind.SET_CANDIDATE, StepKind.SWITCH})


class PlannedState(Value):
    """A state that lies ahead if all goes well, and its steps in order."""

    version: int
    state: State
    steps: tuple[Step, ...]


def plan_entry(update: Update) -> tuple[Step, ...]:
    """The first act of the state: its report waits for it. Empty where the state has none."""
    kinds = _ENTRIES.get(update.state, ())
    if update.state is State.IDLE and update.reason is Reason.STATE_UNKNOWN:
        kinds = (StepKind.FOLLOW_SLOTS,)
    if update.state in _ENDED_BEFORE and update.reason in RESUMABLE:
        kinds = tuple(kind for kind in kinds if kind is not StepKind.COLLECT)
    return _steps(update, kinds)


def plan_work(update: Update, waits: Waits) -> tuple[Step, ...]:
    """The work of an active state. When every step is done the state is passed, unless a step itself says how it ends."""
    if update.state is State.STAGING and waits.download_s > 0:
        return (Step(kind=StepKind.WAIT_FOR_HOURS, setting="download_hours", wait_s=waits.download_s),)
    if update.state is State.ARMED and waits.switch_s > 0:
        return (Step(kind=StepKind.WAIT_FOR_HOURS, setting="switch_hours", wait_s=waits.switch_s),)
    return _steps(update, _WORKS[update.state])


def plan_ahead(
    update: Update | None, slots: ModelSlots, desired: DesiredModel | None, waits: Waits, now: Timer, *, entered: bool = True
) -> tuple[PlannedState, ...]:
    """What happens next if all goes well, until nothing is left to do. `entered`: whether the first act of the state is done."""
    event = next_event(update, slots, desired)
    if event is None:
        if update is None:
            return ()
        begun = () if entered else plan_entry(update)
        if update.state in ACTIVE:
            return _forward(update, waits, begun)
        return (_planned(update, begun),) if begun else ()
    if event in (Event.CANCELLED, Event.REVERTED) and update is not None:
        base = slots.last_good if event is Event.REVERTED else update.base
        ended = replace(update, state=next_state(update.state, event), reason=cancel_reason(update, desired), base=base)
        return (_planned(ended, plan_entry(ended)), *plan_ahead(ended, _after(ended, slots), desired, waits, now))
    if desired is None:
        version = slots.champion.version if slots.champion is not None else 0
        return (PlannedState(version=version, state=State.IDLE, steps=tuple(Step(kind=kind) for kind in _ENTRIES[State.IDLE])),)
    state = update.state if update is not None else State.IDLE
    begins = replace(fresh(desired, 0, now, base=slots.champion), state=next_state(state, event))
    return _forward(begins, waits, plan_entry(begins))


def _forward(update: Update, waits: Waits, begun: tuple[Step, ...]) -> tuple[PlannedState, ...]:
    """This state and those after it, to the end of the update."""
    if update.state not in ACTIVE:
        return (_planned(update, begun),)
    first = _planned(update, (*begun, *_with_hours(update, waits)))
    return (first, *(_planned(then, (*plan_entry(then), *_with_hours(then, waits))) for then in _states_after(update)))


def _states_after(update: Update) -> list[Update]:
    states = [*_WORKS, State.COMMITTED]
    return [replace(update, state=then) for here, then in pairwise(states) if states.index(here) >= states.index(update.state)]


def _with_hours(update: Update, waits: Waits) -> tuple[Step, ...]:
    """A wait, and what comes after it."""
    if update.state not in ACTIVE:
        return ()
    first = plan_work(update, waits)
    waiting = any(step.kind is StepKind.WAIT_FOR_HOURS for step in first)
    return (*first, *plan_work(update, Waits())) if waiting else first


def _after(ended: Update, slots: ModelSlots) -> ModelSlots:
    """The slots once an update has ended without success."""
    champion = ended.base if ended.state is State.ROLLED_BACK else slots.champion
    return slots.replace(champion=champion, candidate=None, probation=False)


def _planned(update: Update, steps: tuple[Step, ...]) -> PlannedState:
    return PlannedState(version=update.desired.version, state=update.state, steps=steps)


def _steps(update: Update, kinds: tuple[StepKind, ...]) -> tuple[Step, ...]:
    return tuple(Step(kind=kind, variant=update.variant if kind in _ABOUT_A_VARIANT else None) for kind in kinds)

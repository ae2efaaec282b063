"""The update machine of one model: one table over closed states and events, and nothing else.

    IDLE -> ADMITTED -> STAGING -> VERIFIED -> SHADOW -> ARMED -> PROBATION -> COMMITTED

Each state names the work that is done *in* it (`executor.py`); the work's outcome is the event that leaves it. The state is saved
before its work begins. From a variant that is off on this machine SHADOW goes back to STAGING with the next one of the package
(OTHER_VARIANT); which were tried is saved with that transition, and each is tried once. What a restart does is part of the table
(event RESTARTED):

- ADMITTED, STAGING go on (blocks that are on disk stay there); VERIFIED, SHADOW and ARMED verify again;
- PROBATION starts again once, a second crash inside it (CRASHED) rolls back;
- an update that cannot be read goes to last-good and starts again (UNREADABLE).

`next_state` is total: a pair that is not in the table is in NEVER, and the two are checked for holes and overlaps at import,
as is that every state but the last ones can end.
"""

from collections.abc import Iterable
from enum import StrEnum
from itertools import pairwise, product

from model_formats.core.errors import SpokeshaveError
from sync.core.types import TERMINAL, State

__all__ = ["ACTIVE", "MAX_SAVES", "NEVER", "TABLE", "Event", "Impossible", "next_state"]

MAX_SAVES = 28
"""Saves of one update in one directive; then it is ended by force, whatever loop it was in (after Mender)."""


class Event(StrEnum):
    """What can happen to an update. Closed."""

    OFFERED = "offered"
    """A directive wants a version that is not served."""
    CONFIRMED = "confirmed"
    """A directive wants the version that is served already."""
    PASSED = "passed"
    """The work of the state is done and good."""
    OTHER_VARIANT = "other_variant"
    """The chosen variant is off on this machine; another one of the package fits."""
    REFUSED = "refused"
    """Not for this device: rules or capacity. Trying again is of no use."""
    FAULT = "fault"
    """The work found something wrong with the package, the model or the way to it."""
    TIMED_OUT = "timed_out"
    """The state's timer ran out."""
    CANCELLED = "cancelled"
    """A newer directive wants something else. Always wins."""
    REVERTED = "reverted"
    """A newer directive goes back from a version that had been committed."""
    RETIRED = "retired"
    """The model is to be served no more."""
    RESTARTED = "restarted"
    """The agent started and found the update in this state."""
    CRASHED = "crashed"
    """As RESTARTED, for the second time in one probation."""
    EXHAUSTED = "exhausted"
    """MAX_SAVES reached."""
    UNREADABLE = "unreadable"
    """The saved row makes no sense."""


class Impossible(SpokeshaveError):
    """An event in a state where it cannot happen: a fault in the agent itself."""

    code = "update_impossible"


ACTIVE = frozenset(State) - TERMINAL - {State.IDLE}
"""States with work in them."""
_FORWARD = [State.ADMITTED, State.STAGING, State.VERIFIED, State.SHADOW, State.ARMED, State.PROBATION, State.COMMITTED]
_BEFORE_SWITCH = ACTIVE - {State.PROBATION}


def _each(states: Iterable[State], events: Iterable[Event], then: State) -> dict[tuple[State, Event], State]:
    return {(state, event): then for state in states for event in events}


TABLE: dict[tuple[State, Event], State] = {
    # begin
    **_each({State.IDLE, *TERMINAL}, {Event.OFFERED}, State.ADMITTED),
    **_each({State.IDLE, *TERMINAL}, {Event.CONFIRMED}, State.COMMITTED),
    # go on
    **{(here, Event.PASSED): then for here, then in pairwise(_FORWARD)},
    # try another variant
    (State.SHADOW, Event.OTHER_VARIANT): State.STAGING,
    # end before the switch: nothing is to be undone but the candidate
    (State.ADMITTED, Event.REFUSED): State.REJECTED,
    **_each(_BEFORE_SWITCH - {State.ADMITTED}, {Event.REFUSED}, State.FAILED),
    **_each(_BEFORE_SWITCH, {Event.FAULT, Event.TIMED_OUT, Event.CANCELLED, Event.EXHAUSTED}, State.FAILED),
    # end after the switch: back to last-good
    **_each(
        {State.PROBATION},
        {Event.FAULT, Event.REFUSED, Event.TIMED_OUT, Event.CANCELLED, Event.CRASHED, Event.EXHAUSTED},
        State.ROLLED_BACK,
    ),
    (State.COMMITTED, Event.REVERTED): State.ROLLED_BACK,
    # the model leaves
    **_each({State.IDLE, *TERMINAL}, {Event.RETIRED}, State.IDLE),
    # restart
    **_each({State.SHADOW, State.ARMED}, {Event.RESTARTED}, State.VERIFIED),
    **{(state, Event.RESTARTED): state for state in State if state not in {State.SHADOW, State.ARMED}},
    **_each(State, {Event.UNREADABLE}, State.IDLE),
}

NEVER: frozenset[tuple[State, Event]] = frozenset(
    {
        # work is over, or has not begun
        *product({State.IDLE, *TERMINAL}, {Event.PASSED, Event.REFUSED, Event.FAULT, Event.TIMED_OUT, Event.CANCELLED}),
        *product({State.IDLE, *TERMINAL}, {Event.CRASHED, Event.EXHAUSTED}),
        # one directive at a time: whatever runs is cancelled first
        *product(ACTIVE, {Event.OFFERED, Event.CONFIRMED, Event.REVERTED, Event.RETIRED}),
        # only a committed version can be gone back from
        *product({State.IDLE, *TERMINAL} - {State.COMMITTED}, {Event.REVERTED}),
        # variants are tried in the shadow alone: before it nothing is loaded, after it callers depend on it
        *product(set(State) - {State.SHADOW}, {Event.OTHER_VARIANT}),
        # only probation counts crashes
        *product(_BEFORE_SWITCH, {Event.CRASHED}),
    }
)


def next_state(state: State, event: Event) -> State:
    """Where `event` leads from `state`. Raises Impossible for pairs in NEVER."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise Impossible(f"{event} in state {state}") from None


def _check() -> None:
    every = set(product(State, Event))
    if holes := every - TABLE.keys() - NEVER:
        raise AssertionError(f"update machine has holes: {sorted(holes)}")
    if both := TABLE.keys() & NEVER:
        raise AssertionError(f"update machine contradicts itself: {sorted(both)}")
    for state in ACTIVE:
        for event in (Event.TIMED_OUT, Event.CANCELLED, Event.EXHAUSTED):
            if TABLE[state, event] not in TERMINAL:
                raise AssertionError(f"{event} does not end {state}")


_check()

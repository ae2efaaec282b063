from itertools import product

import pytest

from spoke_agent.update.state_machine import ACTIVE, NEVER, TABLE, Event, Impossible, next_state
from sync.core.types import TERMINAL, State


def test_every_state_and_event_is_decided_once():
    assert set(TABLE) | NEVER == set(product(State, Event))
    assert not set(TABLE) & NEVER


def test_the_good_way_is_the_one_of_the_design():
    state, way = State.IDLE, []
    for event in [Event.OFFERED] + [Event.PASSED] * 6:
        state = next_state(state, event)
        way.append(str(state))
    assert way == ["admitted", "staging", "verified", "shadow", "armed", "probation", "committed"]


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_every_active_state_can_be_cancelled_and_timed_out(state):
    assert next_state(state, Event.CANCELLED) in TERMINAL
    assert next_state(state, Event.TIMED_OUT) in TERMINAL


@pytest.mark.parametrize("state", sorted(State))
def test_every_state_says_what_a_restart_does(state):
    assert next_state(state, Event.RESTARTED) in State


def test_only_probation_and_a_committed_version_roll_back():
    origins = {state for (state, _), then in TABLE.items() if then is State.ROLLED_BACK and state is not State.ROLLED_BACK}
    assert origins == {State.PROBATION, State.COMMITTED}


def test_every_state_is_reachable_from_idle():
    seen, todo = set(), [State.IDLE]
    while todo:
        state = todo.pop()
        seen.add(state)
        todo += [then for (here, _), then in TABLE.items() if here is state and then not in seen]
    assert seen == set(State)


def test_an_impossible_event_is_an_error_and_not_a_guess():
    with pytest.raises(Impossible, match="passed in state idle"):
        next_state(State.IDLE, Event.PASSED)

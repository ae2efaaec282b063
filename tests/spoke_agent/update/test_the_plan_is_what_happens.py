"""What `spoke status --plan` says lies ahead is what the runner then does, in that order."""

from datetime import datetime, timedelta

import pytest

from spoke_agent.cli.plan import show_plan
from spoke_agent.daemon.plan import ModelPlan, plan_of
from spoke_agent.site.slots import read_slots
from spoke_agent.site.time_window import SiteHours, Waits
from spoke_agent.update.step_planner import PlannedState
from spoke_agent.update.steps import Step, StepKind
from sync.core.types import Reason, State
from tests.spoke_agent.fakes import Behaviour, Rig

FORWARD = ["admitted", "staging", "verified", "shadow", "armed", "probation", "committed"]


def plan(rig, waits=None):
    (found,) = plan_of(rig.journal, read_slots(rig.slots), waits or SiteHours.of(rig.settings, rig.clock).waits(), rig.timer())
    return found.ahead


def states(ahead):
    return [str(p.state) for p in ahead]


def kinds(ahead):
    return [step.kind for state in ahead for step in state.steps]


def accepted(rig, *models):
    """A directive was taken, and nothing done about it yet."""
    rig.journal.accept(rig.directive(*models))


def test_the_states_that_are_planned_are_those_that_are_reported(tmp_path):
    rig = Rig(tmp_path)
    accepted(rig, rig.desired(1))
    before = plan(rig)
    rig.restart(clean=True)
    rig.settle()
    assert states(before) == FORWARD == rig.chain()
    assert {p.version for p in before} == {1}
    assert plan(rig) == ()


@pytest.mark.parametrize("hour", ["download_hours", "switch_hours"])
def test_a_plan_says_how_long_it_waits_for_the_hours(tmp_path, hour):
    rig = Rig(tmp_path, **{hour: "03:00-04:00"})
    rig.want(1)
    rig.run(60)
    now = rig.clock.now()
    opens = datetime.combine(now.date(), datetime.min.time(), now.tzinfo) + timedelta(hours=3)
    step = plan(rig)[0].steps[0]
    assert (step.kind, step.setting) == (StepKind.WAIT_FOR_HOURS, hour)
    assert step.wait_s == pytest.approx((opens - now).total_seconds())
    rig.run(step.wait_s + 30)
    assert rig.last().state is State.COMMITTED


def test_the_variant_is_named_once_it_was_chosen(tmp_path):
    rig = Rig(tmp_path, download_hours="03:00-04:00")
    accepted(rig, rig.desired(1))
    assert {step.variant for state in plan(rig) for step in state.steps} == {None}
    rig.restart(clean=True)
    rig.run(60)
    fetch = next(step for state in plan(rig) for step in state.steps if step.kind is StepKind.FETCH_VARIANT)
    assert fetch.variant == "onnx-int8"


def test_a_newer_wish_ends_the_update_first(tmp_path):
    rig = Rig(tmp_path, switch_hours="03:00-04:00")
    rig.want(1)
    rig.run(60)
    accepted(rig, rig.desired(2))
    assert states(plan(rig)) == ["failed", *FORWARD]
    assert [p.version for p in plan(rig)[:2]] == [1, 2]


def test_a_version_that_failed_here_is_not_planned_again(tmp_path):
    rig = Rig(tmp_path)
    rig.server.behaviour[1] = Behaviour(load=Reason.LOAD_FAILED)
    rig.want(1)
    rig.settle()
    assert rig.last().state is State.FAILED
    assert plan(rig) == ()


def test_going_back_and_leaving_are_planned(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    rig.install(2)
    accepted(rig, rig.desired(1))
    assert states(plan(rig)) == ["rolled_back", "committed"]
    assert kinds(plan(rig))[:2] == [StepKind.GO_BACK, StepKind.FOLLOW_SLOTS]
    accepted(rig)
    assert states(plan(rig)) == ["idle"]
    assert kinds(plan(rig)) == [StepKind.RETIRE, StepKind.COLLECT, StepKind.FOLLOW_SLOTS]


def test_an_entry_that_a_power_cut_left_undone_is_planned(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    rig.cut_at.add(("before_enter", State.COMMITTED))
    rig.want_until_cut(2)
    assert kinds(plan(rig)) == [StepKind.COMMIT, StepKind.COLLECT, StepKind.FOLLOW_SLOTS]


@pytest.mark.parametrize("kind", StepKind)
def test_every_step_is_said_in_words(kind, capsys):
    step = Step(kind=kind, setting="download_hours", wait_s=3 * 3600 + 60)
    show_plan([ModelPlan(model="digits", ahead=(PlannedState(version=2, state=State.STAGING, steps=(step,)),))])
    said = capsys.readouterr().out
    assert "digits@2 staging: " in said
    assert "None" not in said
    assert "{" not in said
    if kind is StepKind.WAIT_FOR_HOURS:
        assert "3 h 1 min for download_hours" in said


def test_nothing_to_wait_for_within_the_hours(tmp_path):
    rig = Rig(tmp_path, download_hours="00:00-02:00")
    accepted(rig, rig.desired(1))
    assert StepKind.WAIT_FOR_HOURS not in kinds(plan(rig))
    assert StepKind.WAIT_FOR_HOURS in kinds(plan(rig, Waits(download_s=60.0)))

from dataclasses import replace
from datetime import timedelta

import pytest

from sync.core.types import Reason, State
from sync.protocol.messages import ProbationTerms
from tests.spoke_agent.fakes import Rig


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    return rig


def test_the_same_directive_again_changes_nothing(rig):
    rig.want(1)
    rig.run(10)
    assert rig.sent == []


@pytest.mark.parametrize("state", [State.ADMITTED, State.STAGING])
def test_a_newer_directive_stops_a_transfer(rig, state):
    rig.hub.publish(2)
    rig.hub.closed = 4 if state is State.ADMITTED else 0
    if state is State.STAGING:
        rig.hub.on_fetch = lambda blob: setattr(rig.hub, "closed", 3) if blob.path == "variants/onnx-int8/model.onnx" else None
    rig.want(2)
    assert rig.last().state is state
    rig.hub.closed, rig.hub.on_fetch = 0, lambda blob: None
    rig.want(3)
    rig.settle()
    assert [(r.version, r.reason) for r in rig.sent if r.state is State.FAILED] == [(2, Reason.SUPERSEDED)]
    assert rig.champion() == 3


def test_going_back_in_the_middle_of_probation_swaps_at_once(rig):
    rig.want(2, probation=ProbationTerms(soak_s=1000))
    rig.run(5)
    assert rig.champion() == 2
    rig.want(1)
    assert rig.champion() == 1
    assert [(r.version, str(r.state), r.reason) for r in rig.sent[-2:]] == [
        (2, "rolled_back", Reason.REVERTED_BY_HUB),
        (1, "committed", Reason.NONE),
    ]
    assert rig.last().serving[0].version == 1


def test_going_back_from_a_committed_version_needs_a_grant_and_swaps_at_once(rig):
    rig.install(2)
    rig.trust.fallback.add((2, 1))
    fetched = dict(rig.hub.fetched)
    rig.want(1)
    assert rig.champion() == 1
    assert dict(rig.hub.fetched) == fetched
    assert [(r.version, str(r.state), r.reason) for r in rig.sent] == [
        (2, "rolled_back", Reason.REVERTED_BY_HUB),
        (1, "committed", Reason.NONE),
    ]
    assert rig.sent[0].evidence.rollback_ms is not None


def test_going_back_without_a_grant_is_refused_and_the_newer_version_goes_on(rig):
    rig.install(2)
    rig.want(1)
    rig.settle()
    assert rig.champion() == 2
    assert (rig.last().state, rig.last().reason) == (State.REJECTED, Reason.DOWNGRADE_NOT_GRANTED)


def test_a_model_that_the_directive_no_longer_names_is_retired_with_its_files(rig):
    rig.controller.follow(rig.directive())
    rig.settle()
    assert (rig.last().state, rig.last().reason) == (State.IDLE, Reason.CANCELLED)
    assert rig.champion() is None
    assert rig.store.digests() == set()


def test_a_model_that_is_withdrawn_in_probation_leaves_altogether(rig):
    rig.want(2, probation=ProbationTerms(soak_s=1000))
    rig.run(5)
    rig.controller.follow(rig.directive())
    rig.settle()
    assert rig.champion() is None
    assert [str(r.state) for r in rig.sent[-2:]] == ["rolled_back", "idle"]


def test_a_withdrawn_update_is_dropped_and_the_champion_goes_on_when_it_is_wanted_again(rig):
    rig.hub.publish(2)
    rig.hub.closed = 4
    rig.want(2)
    rig.want(1)
    rig.hub.closed = 0
    rig.settle()
    assert rig.champion() == 1
    assert (rig.sent[1].state, rig.sent[1].reason) == (State.FAILED, Reason.REVERTED_BY_HUB)


def test_the_directive_survives_a_restart(rig):
    rig.hub.publish(2)
    rig.hub.closed = 2
    rig.want(2)
    rig.restart()
    rig.settle()
    assert rig.champion() == 2
    assert rig.journal.generation == rig.generation


def test_while_the_server_is_away_the_switch_waits_and_no_report_claims_it(rig):
    rig.want(2)
    rig.run(1)
    rig.server.away = True
    rig.want(2, probation=ProbationTerms(soak_s=60))
    rig.restart(clean=True)
    rig.run(20)
    assert rig.champion() == 2
    rig.server.away = False
    rig.settle()
    assert rig.last().state is State.COMMITTED
    assert rig.last().serving[0].version == 2


def test_a_report_does_not_wait_for_a_dead_server_for_ever(rig):
    rig.server.away = True
    rig.controller.follow(rig.directive())
    rig.run(90)
    assert rig.last().state is State.IDLE
    assert rig.last().serving == ()


def test_reports_carry_generation_time_and_a_fresh_nonce(rig):
    rig.want(2)
    rig.settle()
    assert {r.generation for r in rig.sent} == {rig.generation}
    assert len({r.nonce for r in rig.sent}) == len(rig.sent)
    assert all(abs(r.time - rig.clock.now()) < timedelta(minutes=1) for r in rig.sent)


def test_new_terms_for_the_same_version_do_not_begin_it_again(rig):
    rig.want(2, probation=ProbationTerms(soak_s=500))
    rig.run(5)
    count = len(rig.sent)
    desired = rig.controller.directive.models[0]
    rig.controller.follow(rig.directive(replace_probation(desired, 8)))
    rig.run(10)
    assert [str(r.state) for r in rig.sent[count:]] == ["committed"]


def replace_probation(desired, soak_s):
    return desired.replace(probation=ProbationTerms(soak_s=soak_s))


def test_timer_of_another_boot_is_judged_by_wall_time_that_never_runs_backwards(rig):
    early = rig.timer()
    late = replace(early, boot="boot-2", wall=early.wall - timedelta(days=400), monotonic=3.0)
    assert early.elapsed(late) == 0

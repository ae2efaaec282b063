"""Whole rollouts over a real database, real signatures and spokes that say what they are told to say."""

import pytest

from hub.rules.rollout import RolloutState
from hub.rules.rollout_plan import PlanInvalid, RolloutPlan
from hub.services import rollout_runner, rollouts
from hub.services.enrolments import revoke
from hub.services.rollouts import RolloutConflict
from hub.store.directives import find_directive
from sync.core.types import Reason, SpokeId, State
from sync.protocol.messages import Directive
from sync.trust.dsse import unseal

PLAN = """
apiVersion: spokeshave/v1
kind: Rollout
metadata: {{name: digits-{version}}}
spec:
  model: digits@{version}
  rings:
    - {{name: canary, sites: [frankfurt]}}
    - {{name: rest, sites: [dubai]}}
  {more}
"""


def plan(version=1, more="gate: {}"):
    return RolloutPlan.parse(PLAN.format(version=version, more=more))


@pytest.fixture
def fleet(house):
    frankfurt, dubai = house.enrol("frankfurt", "eu", "gdpr"), house.enrol("dubai")
    frankfurt.status()
    dubai.status()
    return frankfurt, dubai


def find(house, device):
    with house.hub.database.read() as db:
        return find_directive(db, device.spoke)


def wanted(house, device):
    """What the signed directive says, opened with the key that the trust metadata names."""
    held = find(house, device)
    directive = unseal(held.envelope, [house.hub.repository.director.public_key], Directive)
    return {m.model: m.version for m in directive.models}


def state(house, name="digits-1"):
    return rollouts.look(house.hub, name)[0]


def roll(house, version=1, more="gate: {}"):
    rollouts.apply(house.hub, plan(version, more), "ann")
    rollout_runner.tick(house.hub)


def committed(house, devices, version, index):
    """Bring a version everywhere."""
    roll(house, version)
    for device in devices:
        device.commits(index, version)
        rollout_runner.tick(house.hub)
    assert state(house, f"digits-{version}").state is RolloutState.COMPLETED


def test_ring_two_starts_only_on_the_evidence_of_ring_one(house, fleet):
    frankfurt, dubai = fleet
    index = house.release(1)
    roll(house)
    assert (wanted(house, frankfurt), wanted(house, dubai)) == ({"digits": 1}, {})
    frankfurt.report(index, state=State.STAGING)
    rollout_runner.tick(house.hub)
    assert wanted(house, dubai) == {}
    frankfurt.commits(index)
    rollout_runner.tick(house.hub)
    assert wanted(house, dubai) == {"digits": 1}
    assert state(house).state is RolloutState.RUNNING
    dubai.commits(index)
    rollout_runner.tick(house.hub)
    assert state(house).state is RolloutState.COMPLETED


def test_a_failed_canary_aborts_and_the_next_ring_never_sees_it(house, fleet):
    frankfurt, dubai = fleet
    one = house.release(1)
    committed(house, fleet, 1, one)
    two = house.release(2, fallback=(1,))
    roll(house, 2)
    assert wanted(house, frankfurt) == {"digits": 2}
    frankfurt.report(two, 2, State.ROLLED_BACK, Reason.ACCURACY_BELOW_CLAIM, rollback_ms=180)
    rollout_runner.tick(house.hub)
    ended = state(house, "digits-2")
    assert (ended.state, ended.reason.partition(":")[0]) == (RolloutState.ABORTED, "accuracy_below_claim")
    assert (wanted(house, frankfurt), wanted(house, dubai)) == ({"digits": 1}, {"digits": 1})


def test_a_spoke_that_says_committed_is_overruled_by_its_labels_and_sent_back(house, fleet):
    frankfurt, _ = fleet
    committed(house, fleet, 1, house.release(1))
    two = house.release(2, fallback=(1,))
    roll(house, 2)
    frankfurt.commits(two, 2, labelled=100, labelled_correct=60)
    rollout_runner.tick(house.hub)
    assert state(house, "digits-2").state is RolloutState.ABORTED
    assert wanted(house, frankfurt) == {"digits": 1}


def test_a_first_version_that_fails_is_retired(house, fleet):
    frankfurt, _ = fleet
    index = house.release(1)
    roll(house)
    frankfurt.report(index, state=State.FAILED, reason=Reason.GOLDEN_MISMATCH)
    rollout_runner.tick(house.hub)
    assert wanted(house, frankfurt) == {}


def test_hold_leaves_reached_spokes_as_they_are(house, fleet):
    frankfurt, _ = fleet
    committed(house, fleet, 1, house.release(1))
    two = house.release(2)
    roll(house, 2, "on_abort: hold")
    frankfurt.report(two, 2, State.FAILED, Reason.TIMEOUT)
    rollout_runner.tick(house.hub)
    assert state(house, "digits-2").state is RolloutState.ABORTED
    assert wanted(house, frankfurt) == {"digits": 2}


def test_an_old_failure_does_not_count_against_a_second_try(house, fleet):
    frankfurt, _ = fleet
    index = house.release(1)
    roll(house)
    frankfurt.report(index, state=State.FAILED, reason=Reason.TRANSFER_FAILED, generation=2)
    rollout_runner.tick(house.hub)
    assert state(house).state is RolloutState.ABORTED
    rollouts.apply(house.hub, RolloutPlan.parse(plan().canonical().replace(b'"digits-1"', b'"again"')), "ann")
    rollout_runner.tick(house.hub)
    assert state(house, "again").state is RolloutState.RUNNING


def test_an_offline_spoke_is_told_and_counts_as_missing(house, fleet):
    frankfurt, _ = fleet
    frankfurt.status(online=False)
    house.release(1)
    roll(house)
    assert wanted(house, frankfurt) == {"digits": 1}
    assert state(house).reason == "0 of at least 1 committed"
    (ring, _) = rollouts.look(house.hub, "digits-1")[1]
    assert not ring.members[0].online


def test_silence_counts_as_offline_after_a_while(house, fleet, clock):
    house.release(1)
    roll(house)
    clock.advance(house.hub.settings.silent_after_s + 1)
    (ring, _) = rollouts.look(house.hub, "digits-1")[1]
    assert not ring.members[0].online


def test_soak_is_waited_for(house, fleet, clock):
    frankfurt, dubai = fleet
    index = house.release(1)
    roll(house, more="gate: {soak_s: 60}")
    frankfurt.commits(index)
    rollout_runner.tick(house.hub)
    assert wanted(house, dubai) == {}
    clock.advance(61)
    rollout_runner.tick(house.hub)
    assert wanted(house, dubai) == {"digits": 1}


def test_pause_holds_the_next_ring_and_resume_opens_it(house, fleet):
    frankfurt, dubai = fleet
    index = house.release(1)
    roll(house)
    rollouts.pause(house.hub, "digits-1", "ann")
    frankfurt.commits(index)
    rollout_runner.tick(house.hub)
    assert wanted(house, dubai) == {}
    rollouts.resume(house.hub, "digits-1", "ann")
    rollout_runner.tick(house.hub)
    assert wanted(house, dubai) == {"digits": 1}


def test_abort_by_hand_reverts(house, fleet):
    frankfurt, _ = fleet
    committed(house, fleet, 1, house.release(1))
    house.release(2, fallback=(1,))
    roll(house, 2)
    rollouts.abort(house.hub, "digits-2", "ann", "second thoughts")
    assert wanted(house, frankfurt) == {"digits": 1}
    with pytest.raises(RolloutConflict):
        rollouts.resume(house.hub, "digits-2", "ann")


def test_approvals_are_awaited_and_the_author_does_not_count(house, fleet):
    frankfurt, _ = fleet
    house.release(1)
    rollouts.apply(house.hub, plan(more="approvals: 1"), "ann")
    rollout_runner.tick(house.hub)
    assert wanted(house, frankfurt) == {}
    with pytest.raises(RolloutConflict, match="author"):
        rollouts.approve(house.hub, "digits-1", "ann")
    rollouts.approve(house.hub, "digits-1", "bob")
    rollout_runner.tick(house.hub)
    assert wanted(house, frankfurt) == {"digits": 1}


def test_applying_twice_changes_nothing_and_another_under_the_name_is_refused(house, fleet):
    house.release(1)
    roll(house)
    assert rollouts.apply(house.hub, plan(), "ann").plan == plan()
    with pytest.raises(RolloutConflict, match="another content"):
        rollouts.apply(house.hub, plan(more="max_parallel: 1"), "ann")


def test_a_second_rollout_of_a_model_waits_its_turn(house, fleet):
    house.release(1)
    house.release(2)
    roll(house)
    with pytest.raises(RolloutConflict, match="digits-1 of digits is running"):
        rollouts.apply(house.hub, plan(2), "ann")


def test_plans_that_cannot_work_are_refused_and_nothing_is_changed(house, fleet):
    house.release(1, zones=("me",))
    rows = {
        "digits@7 is not released": plan(7),
        "frankfurt/main may not have digits@1: zone_forbidden": plan(1),
        "no spoke is enrolled at paris": RolloutPlan.parse(plan().canonical().replace(b"frankfurt", b"paris")),
    }
    for message, bad in rows.items():
        with pytest.raises(PlanInvalid, match=message):
            rollouts.apply(house.hub, bad, "ann")
    assert rollout_runner.tick(house.hub) == {}


def test_a_plan_without_a_way_back_is_refused(house, fleet):
    committed(house, fleet, 1, house.release(1))
    house.release(2)
    with pytest.raises(PlanInvalid, match="no grant to go back"):
        rollouts.apply(house.hub, plan(2), "ann")


def test_a_hub_that_is_opened_again_goes_on_where_it_was(house, fleet):
    from hub.context import HubContext

    frankfurt, dubai = fleet
    index = house.release(1)
    roll(house)
    frankfurt.commits(index)
    house.hub.close()
    house.hub = HubContext.open(house.hub.home.root, house.hub.settings, house.clock)
    rollout_runner.tick(house.hub)
    assert wanted(house, dubai) == {"digits": 1}
    assert SpokeId("dubai") == dubai.spoke


EVERYONE = """
apiVersion: spokeshave/v1
kind: Rollout
metadata: {name: digits-1}
spec:
  model: digits@1
  rings: [{name: all, sites: ["*"]}]
  gate: {}
"""


def everywhere(house, devices, index):
    """Version 1 at all sites there are."""
    rollouts.apply(house.hub, RolloutPlan.parse(EVERYONE), "ann")
    rollout_runner.tick(house.hub)
    for device in devices:
        device.commits(index)
    rollout_runner.tick(house.hub)
    assert state(house).state is RolloutState.COMPLETED


def test_a_spoke_that_enrols_after_everyone_got_a_version_gets_it_too(house, fleet):
    everywhere(house, fleet, house.release(1))
    late = house.enrol("lyon", "eu", "gdpr")
    rollout_runner.tick(house.hub)
    assert wanted(house, late) == {"digits": 1}
    before = find(house, late)
    rollout_runner.tick(house.hub)
    assert find(house, late) == before, "it is told once"
    assert state(house).state is RolloutState.COMPLETED


def test_a_newcomer_that_the_rollout_did_not_mean_gets_nothing(house, fleet):
    committed(house, fleet, 1, house.release(1))
    late = house.enrol("lyon", "eu", "gdpr")
    rollout_runner.tick(house.hub)
    assert wanted(house, late) == {}


def test_a_newcomer_in_a_zone_that_the_package_may_not_enter_gets_nothing(house, fleet):
    _, dubai = fleet
    everywhere(house, [dubai], house.release(1, zones=("me",)))
    late, allowed = house.enrol("lyon", "eu", "gdpr"), house.enrol("sharjah")
    rollout_runner.tick(house.hub)
    assert (wanted(house, late), wanted(house, allowed)) == ({}, {"digits": 1})


def test_a_newcomer_gets_what_is_proven_while_the_next_version_is_on_trial(house, fleet):
    frankfurt, _ = fleet
    everywhere(house, fleet, house.release(1))
    two = house.release(2, fallback=(1,))
    roll(house, 2)
    late = house.enrol("lyon", "eu", "gdpr")
    rollout_runner.tick(house.hub)
    assert wanted(house, late) == {"digits": 1}
    frankfurt.commits(two, 2)
    rollout_runner.tick(house.hub)
    assert wanted(house, late) == {"digits": 1}, "no ring of the second rollout names it"


def test_the_newest_completed_rollout_is_what_newcomers_get(house, fleet, clock):
    everywhere(house, fleet, house.release(1))
    clock.advance(10)
    two = house.release(2, fallback=(1,))
    rollouts.apply(house.hub, RolloutPlan.parse(EVERYONE.replace("digits-1", "digits-2").replace("digits@1", "digits@2")), "ann")
    rollout_runner.tick(house.hub)
    for device in fleet:
        device.commits(two, 2)
    rollout_runner.tick(house.hub)
    late = house.enrol("lyon", "eu", "gdpr")
    rollout_runner.tick(house.hub)
    assert wanted(house, late) == {"digits": 2}


def test_a_rollout_that_waits_says_for_how_many(house, fleet):
    house.release()
    assert rollouts.apply(house.hub, plan(more="approvals: 2"), "ann").reason == "waits for 2 approvals"
    assert rollouts.approve(house.hub, "digits-1", "bob").reason == "waits for 1 approval"
    assert rollouts.approve(house.hub, "digits-1", "cas").state is RolloutState.RUNNING


def test_a_ring_for_a_zone_that_the_hub_does_not_serve_is_refused(house, fleet):
    house.release()
    moon = RolloutPlan.parse(PLAN.format(version=1, more="").replace("sites: [dubai]", 'sites: ["*"], zones: [moon]'))
    with pytest.raises(PlanInvalid, match="zone 'moon' is not among me, eu"):
        rollouts.preview(house.hub, moon)


def test_a_spoke_that_was_revoked_on_the_way_does_not_keep_a_rollout_from_ending(house, fleet):
    frankfurt, _dubai = fleet
    house.release()
    roll(house)
    assert wanted(house, frankfurt) == {"digits": 1}
    revoke(house.hub, frankfurt.spoke, "ann")
    rollout_runner.tick(house.hub)
    assert rollouts.abort(house.hub, "digits-1", "ann").state is RolloutState.ABORTED

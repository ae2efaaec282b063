"""The plug is pulled in every state: the chain goes on by the restart rule, and a verified version serves."""

import pytest

from spoke_agent.site.slots import edit_slots
from spoke_agent.update.state_machine import MAX_SAVES
from sync.core.types import Reason, State
from sync.protocol.messages import ProbationTerms
from tests.spoke_agent.fakes import PowerCut, Rig

WORKING = [State.ADMITTED, State.STAGING, State.VERIFIED, State.SHADOW, State.ARMED, State.PROBATION]
AGAIN = {State.SHADOW: State.VERIFIED, State.ARMED: State.VERIFIED}


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    return rig


@pytest.mark.parametrize("where", ["before_work", "after_work"])
@pytest.mark.parametrize("state", WORKING)
def test_a_cut_in_the_work_of_a_state_delays_the_update_and_no_more(rig, state, where):
    rig.hub.publish(2)
    rig.cut_at.add((where, state))
    rig.want_until_cut(2)
    assert rig.champion() == (2 if state is State.PROBATION else 1)
    rig.sent.clear()
    rig.restart()
    rig.settle()
    assert rig.chain()[0] == AGAIN.get(state, state)
    assert rig.last().state is State.COMMITTED
    assert rig.champion() == 2


@pytest.mark.parametrize("where", ["before_enter", "after_enter"])
@pytest.mark.parametrize("state", [State.PROBATION, State.COMMITTED])
def test_a_cut_around_the_switch_still_ends_well(rig, state, where):
    rig.hub.publish(2)
    rig.cut_at.add((where, state))
    rig.want_until_cut(2)
    rig.restart()
    rig.settle()
    assert rig.last().state is State.COMMITTED
    assert rig.last().serving[0].version == rig.champion() == 2
    assert not rig.model_slots().probation


@pytest.mark.parametrize("where", ["before_enter", "after_enter"])
def test_a_cut_on_the_way_back_ends_on_last_good(rig, where):
    rig.want(2, probation=ProbationTerms(soak_s=1000))
    rig.run(5)
    rig.cut_at.add((where, State.ROLLED_BACK))
    with pytest.raises(PowerCut):
        rig.want(1)
    rig.restart()
    rig.settle()
    assert rig.champion() == 1
    assert [(r.version, r.state) for r in rig.sent[-2:]] == [(2, State.ROLLED_BACK), (1, State.COMMITTED)]


def test_a_first_crash_in_probation_starts_it_again_and_a_second_rolls_back(rig):
    rig.want(2, probation=ProbationTerms(soak_s=100))
    rig.run(50)
    rig.restart()
    rig.run(60)
    assert rig.last().state is State.PROBATION
    rig.restart()
    rig.settle()
    assert (rig.last().state, rig.last().reason) == (State.ROLLED_BACK, Reason.CRASHED_IN_PROBATION)
    assert rig.champion() == 1


def test_clean_stops_in_probation_do_not_count_as_crashes(rig):
    rig.want(2, probation=ProbationTerms(soak_s=100))
    for _ in range(4):
        rig.run(10)
        rig.restart(clean=True)
    rig.settle()
    assert rig.champion() == 2


def test_a_server_that_falls_twice_in_probation_takes_its_version_with_it(rig):
    rig.want(2, probation=ProbationTerms(soak_s=100))
    for _ in range(2):
        rig.run(20)
        rig.server.restart()
    rig.settle()
    assert (rig.last().state, rig.last().reason) == (State.ROLLED_BACK, Reason.CRASHED_IN_PROBATION)
    assert rig.champion() == 1


def test_a_crash_loop_ends_after_so_many_saves(rig):
    rig.want(2, probation=ProbationTerms(soak_s=1000))
    rig.hub.publish(3)
    rig.hub.closed = 10_000
    rig.want(3)
    for _ in range(MAX_SAVES + 5):
        rig.restart()
    rig.settle()
    assert (rig.last().version, rig.last().state, rig.last().reason) == (3, State.FAILED, Reason.SAVES_EXHAUSTED)
    assert rig.journal.update("digits").saves <= MAX_SAVES
    assert rig.champion() == 1


def test_a_row_that_makes_no_sense_goes_to_last_good_and_begins_anew(rig):
    rig.want(2, probation=ProbationTerms(soak_s=50))
    rig.run(5)
    assert rig.champion() == 2
    rig.journal._db.execute("UPDATE updates SET state = 'dancing'")
    rig.sent.clear()
    rig.restart()
    assert rig.champion() == 1
    rig.settle()
    assert (rig.sent[0].state, rig.sent[0].reason) == (State.IDLE, Reason.STATE_UNKNOWN)
    assert rig.champion() == 2


def test_a_lost_journal_in_probation_goes_to_last_good(rig):
    rig.want(2, probation=ProbationTerms(soak_s=1000))
    rig.run(5)
    rig.journal.close()
    for file in rig.folder.glob("spoke/journal.db*"):
        file.unlink()
    rig.start()
    assert rig.champion() == 1
    assert not rig.model_slots().probation


def test_lost_slots_are_filled_again(rig):
    rig.slots.unlink()
    rig.restart()
    rig.settle()
    assert rig.champion() == 1


def test_a_reboot_in_the_soak_starts_the_soak_again_whatever_the_clock_says(rig):
    rig.want(2, probation=ProbationTerms(soak_s=100))
    rig.run(50)
    rig.clock.set(rig.clock.now().replace(year=2099))
    rig.restart(boot="boot-2", clean=True)
    rig.run(50)
    assert rig.last().state is State.PROBATION
    rig.run(60)
    assert rig.last().state is State.COMMITTED


def test_the_transfer_goes_on_with_what_is_there(rig):
    index = rig.hub.publish(2)
    rig.hub.on_fetch = lambda blob: _cut(blob)

    def _cut(blob):
        if blob.path == "variants/onnx-int8/model.onnx":
            rig.hub.on_fetch = lambda blob: None
            raise PowerCut

    with pytest.raises(PowerCut):
        rig.want(2)
    fetched = dict(rig.hub.fetched)
    rig.restart()
    rig.settle()
    assert rig.champion() == 2
    assert all(rig.hub.fetched[digest] == size for digest, size in fetched.items())
    assert rig.hub.fetched[index] == fetched[index]


def test_an_adapter_set_by_tuning_in_the_middle_of_an_update_is_kept(rig):
    from spoke_agent.site.slots import AdapterSlot

    adapter = AdapterSlot(name="mine", file="sha256:" + "a" * 64, base="sha256:" + "b" * 64)
    rig.want(2, probation=ProbationTerms(soak_s=20))
    rig.run(5)
    edit_slots(rig.slots, "digits", lambda m: m.replace(adapter=adapter))
    rig.settle()
    assert rig.model_slots().adapter == adapter


def test_files_that_a_power_cut_brought_back_are_removed_when_nothing_is_under_way(rig):
    stray = rig.store.put(b"its removal had not reached the disk")
    rig.controller.tidy()
    assert not rig.store.has(stray)
    assert rig.champion() == 1


def test_what_an_update_may_go_on_from_is_no_litter(rig):
    rig.hub.closed = 10_000
    rig.want(2)
    arriving = rig.store.put(b"of the version that is on its way")
    rig.controller.tidy()
    assert rig.store.has(arriving)
    rig.settle()
    assert (rig.last().state, rig.last().reason) == (State.FAILED, Reason.TRANSFER_FAILED)
    rig.controller.tidy()
    assert rig.store.has(arriving)

"""A variant that is off on this machine ends no update: the next one of the package is tried, and the hub hears of it."""

import pytest

from model_formats.package import open_package
from spoke_agent.update.state_machine import MAX_SAVES
from sync.core.types import Reason, State
from sync.protocol.messages import PassedOver
from tests.spoke_agent.fakes import Behaviour, Rig

OFF = Behaviour(off={"onnx-int8": Reason.GOLDEN_MISMATCH})
WRONG = PassedOver(variant="onnx-int8", reason=Reason.GOLDEN_MISMATCH)
NOT_FOR_US = PassedOver(variant="onnx-int8", reason=Reason.CPU_CLASS_UNSUPPORTED)


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    rig.server.behaviour[2] = OFF
    return rig


def float_file(rig):
    return open_package(rig.hub.layout(rig.hub.versions[2]), rig.hub.versions[2]).files["variants/onnx-fp32/model.onnx"].digest


def test_the_hub_hears_which_variant_serves_and_why_not_the_first(rig):
    rig.want(2)
    rig.settle()
    again, last = next(r for r in rig.sent if r.reason is Reason.GOLDEN_MISMATCH), rig.last()
    assert (again.previous, again.state) == (State.SHADOW, State.STAGING)
    assert (last.state, last.reason, last.serving[0].variant) == (State.COMMITTED, Reason.NONE, "onnx-fp32")
    seen = last.evidence
    assert (seen.cpu_class, seen.variant, seen.engine, seen.mode) == ("avx2", "onnx-fp32", "onnxruntime", "fast")
    assert seen.passed_over == (WRONG,)
    assert seen.bytes_received >= 900_000
    assert seen.bytes_received <= seen.bytes_total
    assert rig.journal.update("digits").saves == 10 < MAX_SAVES


def test_a_variant_that_the_evidence_calls_off_on_this_class_is_never_fetched(rig):
    rig.server.behaviour[2] = Behaviour()
    index = rig.hub.publish(2, ("onnx-int8", "avx2"))
    rig.want(2)
    rig.settle()
    staging = next(r for r in rig.sent if r.state is State.STAGING)
    assert staging.evidence.passed_over == (NOT_FOR_US,)
    assert rig.last().serving[0].variant == "onnx-fp32"
    assert open_package(rig.hub.layout(index), index).files["variants/onnx-int8/model.onnx"].digest not in rig.hub.fetched


def test_a_package_that_is_off_on_this_class_is_rejected_before_anything_is_staged(rig):
    rig.hub.publish(2, ("onnx-int8", "avx2"), ("onnx-fp32", "avx2"))
    rig.want(2)
    rig.settle()
    assert (rig.last().state, rig.last().reason) == (State.REJECTED, Reason.CPU_CLASS_UNSUPPORTED)
    assert [p.variant for p in rig.last().evidence.passed_over] == ["onnx-int8", "onnx-fp32"]
    assert rig.champion() == 1


def test_no_room_for_the_next_variant_is_what_is_told(rig):
    rig.hub.publish(2)
    rig.capacity = rig.capacity.__class__(400_000, 1 << 20, frozenset(), 21, frozenset({"onnxruntime"}), "avx2")
    rig.want(2)
    rig.settle()
    assert (rig.last().state, rig.last().reason) == (State.FAILED, Reason.NO_SPACE)
    assert rig.last().evidence.passed_over[0] == WRONG
    assert rig.champion() == 1


@pytest.mark.parametrize("where", ["before_work", "after_work"])
def test_a_cut_while_the_first_variant_is_tried_ends_well(rig, where):
    rig.hub.publish(2)
    rig.cut_at.add((where, State.SHADOW))
    rig.want_until_cut(2)
    ends_on_the_second(rig)


LATER = [State.VERIFIED, State.SHADOW, State.ARMED, State.PROBATION]


@pytest.mark.parametrize(
    ("state", "where"),
    [(State.STAGING, "after_work"), *((s, w) for s in LATER for w in ("before_work", "after_work"))],
)
def test_a_cut_while_the_second_variant_is_tried_does_not_try_the_first_again(rig, state, where):
    rig.hub.publish(2)
    second = float_file(rig)

    def cut_from_now_on(blob):
        if blob.digest == second:
            rig.cut_at.add((where, state))

    rig.hub.on_fetch = cut_from_now_on
    rig.want_until_cut(2)
    rig.hub.on_fetch = lambda blob: None
    rig.sent.clear()
    ends_on_the_second(rig)
    assert all(r.evidence.variant == "onnx-fp32" for r in rig.sent)


def ends_on_the_second(rig):
    rig.restart()
    assert rig.model_slots().champion is not None
    rig.settle()
    assert (rig.last().state, rig.last().serving[0].variant) == (State.COMMITTED, "onnx-fp32")
    assert rig.last().evidence.passed_over == (WRONG,)
    assert rig.model_slots().candidate is None


def test_asked_anew_every_variant_is_tried_anew(rig):
    rig.server.behaviour[2] = Behaviour(golden=False)
    rig.want(2)
    rig.settle()
    assert rig.last().reason is Reason.GOLDEN_MISMATCH
    rig.server.behaviour[2] = Behaviour()
    rig.want(2, rollout="again")
    rig.settle()
    assert (rig.last().serving[0].variant, rig.last().evidence.passed_over) == ("onnx-int8", ())


def moved(rig, behaviour):
    """Overnight the disk was put into another machine, where version 2 does as `behaviour` says."""
    rig.server.behaviour[2] = Behaviour()
    rig.install(2)
    rig.server.behaviour[2] = behaviour
    rig.server.restart()
    rig.restart(clean=True, boot="boot-2")
    rig.settle()


def test_a_machine_that_was_moved_gets_the_variant_that_is_right_there(rig):
    moved(rig, OFF)
    assert (rig.last().state, rig.last().version, rig.last().serving[0].variant) == (State.COMMITTED, 2, "onnx-fp32")
    assert rig.model_slots().last_good.version == 1


def test_where_nothing_is_right_any_more_last_good_serves_and_the_hub_hears_why(rig):
    moved(rig, Behaviour(golden=False))
    assert (rig.last().state, rig.last().reason) == (State.FAILED, Reason.GOLDEN_MISMATCH)
    assert (rig.champion(), rig.last().serving[0].version) == (1, 1)
    sent = len(rig.sent)
    rig.restart(clean=True)
    rig.run(30)
    assert len(rig.sent) == sent


@pytest.mark.parametrize("fault", [Reason.NO_MEMORY, Reason.PACKAGE_TAMPERED])
def test_what_is_no_fault_of_the_variant_brings_no_other(rig, fault):
    moved(rig, Behaviour(load=fault))
    assert rig.sent == []
    assert rig.champion() == 2


def test_a_start_waits_for_a_server_that_is_away(rig):
    rig.server.behaviour[2] = Behaviour()
    rig.install(2)
    rig.server.away = True
    rig.restart(clean=True)
    rig.run(5)
    rig.server.behaviour[2] = OFF
    rig.server.away = False
    rig.server.restart()
    rig.settle()
    rig.run(5)
    rig.settle()
    assert rig.last().serving[0].variant == "onnx-fp32"

"""The rollout rule as rows of data: what the hub knows -> what it does next."""

import pytest

from hub.rules.rollout import (
    Abort,
    Assign,
    ClearReady,
    Complete,
    MarkReady,
    PassRing,
    Pause,
    RingState,
    RingView,
    RolloutState,
    SpokeView,
    StartRing,
    Wait,
    decide,
)
from hub.rules.rollout_plan import GateTerms, Ring, RolloutSpec
from sync.core.types import Reason, SpokeId, State
from sync.protocol.messages import UpdateEvidence

A, B, C = SpokeId("a"), SpokeId("b"), SpokeId("c")
RUN = RolloutState.RUNNING


def spec(**gate):
    more = {k: gate.pop(k) for k in ("max_parallel",) if k in gate}
    rings = (Ring(name="one", sites=("a", "b")), Ring(name="two", sites=("c",)))
    return RolloutSpec(model="digits@2", rings=rings, gate=GateTerms(**gate), **more)


def member(spoke, state=None, reason=Reason.NONE, *, online=True, assigned=1.0, serving=None, cpu_class=None, **evidence):
    serving = state is State.COMMITTED if serving is None else serving
    return SpokeView(spoke, online, assigned, state, reason, serving, UpdateEvidence(**evidence), cpu_class)


def ring(*members, state=RingState.RUNNING, started=0.0, ready=None):
    return RingView(state, members, started, ready)


WAITING_TWO = RingView(RingState.WAITING, (SpokeView(C, True),))
FRESH = RingView(RingState.WAITING, (SpokeView(A, True), SpokeView(B, True)))
OK_A, OK_B = member(A, State.COMMITTED), member(B, State.COMMITTED)

ROWS = {
    "a new rollout opens its first ring and tells its members": (
        spec(), RUN, (FRESH, WAITING_TWO), (StartRing(0), Assign(0, (A, B)))),
    "a pending rollout waits": (spec(), RolloutState.PENDING, (FRESH, WAITING_TWO), (Wait("pending"),)),
    "an ended rollout does nothing": (spec(), RolloutState.ABORTED, (ring(OK_A, OK_B), WAITING_TWO), ()),
    "with one place, one spoke at a time": (
        spec(max_parallel=1), RUN, (FRESH, WAITING_TWO), (StartRing(0), Assign(0, (A,)))),
    "an offline spoke is told and holds no place": (
        spec(max_parallel=1), RUN, (RingView(RingState.WAITING, (SpokeView(A, False), SpokeView(B, True))), WAITING_TWO),
        (StartRing(0), Assign(0, (B, A)))),
    "the place goes to the next one when the first is done": (
        spec(max_parallel=1), RUN, (ring(OK_A, member(B, assigned=None)), WAITING_TWO), (Assign(0, (B,)),)),
    "a spoke at work holds the ring": (
        spec(), RUN, (ring(OK_A, member(B, State.PROBATION)), WAITING_TWO),
        (Wait("1 still at work and 0 missing of 2, 0 allowed"),)),
    "all committed passes the ring": (spec(), RUN, (ring(OK_A, OK_B), WAITING_TWO), (PassRing(0, "held for 0 s"),)),
    "the soak begins when the rest holds": (
        spec(soak_s=60), RUN, (ring(OK_A, OK_B), WAITING_TWO), (MarkReady(0), Wait("soaks 60 s"))),
    "the soak goes on": (spec(soak_s=60), RUN, (ring(OK_A, OK_B, ready=950.0), WAITING_TWO), (Wait("soaks 10 s more"),)),
    "the soak ends": (spec(soak_s=60), RUN, (ring(OK_A, OK_B, ready=940.0), WAITING_TWO), (PassRing(0, "held for 60 s"),)),
    "a relapse within the soak starts it again": (
        spec(soak_s=60), RUN, (ring(OK_A, member(B, State.STAGING), ready=950.0), WAITING_TWO),
        (ClearReady(0), Wait("1 still at work and 0 missing of 2, 0 allowed"))),
    "after the ring the next one": (
        spec(), RUN, (ring(OK_A, OK_B, state=RingState.PASSED), WAITING_TWO), (StartRing(1), Assign(1, (C,)))),
    "after the last ring it is complete": (
        spec(), RUN, (ring(OK_A, OK_B, state=RingState.PASSED), ring(member(C, State.COMMITTED), state=RingState.PASSED)),
        (Complete(),)),
    "a later ring without anybody holds nothing up": (
        spec(), RUN, (ring(OK_A, OK_B, state=RingState.PASSED), ring()), (PassRing(1, "nobody is in it"),)),
    "a first ring without anybody shows nothing": (spec(), RUN, (ring(), WAITING_TWO), (Wait("0 of at least 1 committed"),)),
    "missing beyond the budget waits, and is no failure": (
        spec(), RUN, (ring(OK_A, member(B, online=False)), WAITING_TWO),
        (Wait("0 still at work and 1 missing of 2, 0 allowed"),)),
    "missing within the budget passes": (
        spec(max_missing=0.5), RUN, (ring(OK_A, member(B, online=False)), WAITING_TWO), (PassRing(0, "held for 0 s"),)),
    "too few committed waits": (
        spec(min_committed=2, max_missing=0.5), RUN, (ring(OK_A, member(B, online=False)), WAITING_TWO),
        (Wait("1 of at least 2 committed"),)),
    "a ring past its deadline asks a person": (
        spec(deadline_s=500), RUN, (ring(OK_A, member(B, online=False)), WAITING_TWO),
        (Pause("ring 1 has passed its deadline: 0 still at work and 1 missing of 2, 0 allowed"),)),
    "a rejected device is neither for nor against": (
        spec(), RUN, (ring(OK_A, member(B, State.REJECTED, Reason.NO_SPACE)), WAITING_TWO), (PassRing(0, "held for 0 s"),)),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_next_steps(name):
    given, state, rings, expected = ROWS[name]
    assert decide(given, state, rings, None, 1000.0) == expected


TILL = {"cpu_class": "sse42"}
OFF = (State.FAILED, Reason.GOLDEN_MISMATCH)
"""What a spoke says when every variant of the package is off there."""

CLASSES = {
    "an old till does not end it while others are at work": (
        spec(), (ring(member(A, *OFF, **TILL), member(B, State.PROBATION, cpu_class="vnni")), WAITING_TWO),
        (Wait("0 of at least 1 committed"),)),
    "nor does it count against the others when they have committed": (
        spec(), (ring(member(A, *OFF, **TILL), OK_B), WAITING_TWO), (PassRing(0, "held for 0 s"),)),
    "nor does it keep another spoke from its place": (
        spec(max_parallel=1), (ring(member(A, *OFF, **TILL), member(B, assigned=None)), WAITING_TWO), (Assign(0, (B,)),)),
    "two old classes beside a new one": (
        spec(),
        (ring(member(A, *OFF, **TILL), member(C, State.FAILED, Reason.LOAD_FAILED, cpu_class="arm64"), OK_B), WAITING_TWO),
        (PassRing(0, "held for 0 s"),)),
    "a later ring of old tills waits, and ends nothing that has passed": (
        spec(), (ring(OK_B, state=RingState.PASSED), ring(member(A, *OFF, **TILL))), (Wait("0 of at least 1 committed"),)),
    "alone it ends it": (
        spec(), (ring(member(A, *OFF, **TILL)), WAITING_TWO), (Abort("golden_mismatch", "a/main reports golden_mismatch"),)),
    "when the others turn out to be off too, it ends": (
        spec(), (ring(member(A, *OFF, **TILL), member(B, *OFF, cpu_class="vnni")), WAITING_TWO),
        (Abort("golden_mismatch", "a/main reports golden_mismatch"),)),
    "another of the same class at work is no hope": (
        spec(), (ring(member(A, *OFF, **TILL), member(B, State.SHADOW, **TILL)), WAITING_TWO),
        (Abort("golden_mismatch", "a/main reports golden_mismatch"),)),
    "one that does not say its class is not excused": (
        spec(), (ring(member(A, *OFF), OK_B), WAITING_TWO), (Abort("golden_mismatch", "a/main reports golden_mismatch"),)),
    "one machine that is off while its class is right has failed, as others fail": (
        spec(), (ring(member(A, *OFF, **TILL), member(B, State.COMMITTED, **TILL)), WAITING_TWO),
        (Abort("failed_share", "1 of 2 failed: at least 0.12 with 95 % confidence, 0.10 allowed"),)),
    "a fault that is of no class ends it as ever": (
        spec(), (ring(member(A, State.ROLLED_BACK, Reason.ACCURACY_BELOW_CLAIM, **TILL), OK_B), WAITING_TWO),
        (Abort("accuracy_below_claim", "a/main reports accuracy_below_claim"),)),
    "many of one class that are off are not the share that ends it": (
        spec(), (ring(*(member(SpokeId(f"till{i}"), *OFF, **TILL) for i in range(20)), OK_B), WAITING_TWO),
        (PassRing(0, "held for 0 s"),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_a_fault_of_one_class_of_cpu_is_not_the_fleets(name):
    given, rings, expected = CLASSES[name]
    assert decide(given, RUN, rings, None, 1000.0) == expected


AGAINST = {
    "one hard reason": (spec(), (ring(OK_A, member(B, State.ROLLED_BACK, Reason.GOLDEN_MISMATCH)),), "golden_mismatch"),
    "a hard reason while paused": (spec(), (ring(member(A, State.FAILED, Reason.PACKAGE_TAMPERED)),), "package_tampered"),
    "a hard reason in a ring that had passed": (
        spec(), (ring(member(A, State.ROLLED_BACK, Reason.ACCURACY_BELOW_CLAIM), state=RingState.PASSED), ring(OK_B)),
        "accuracy_below_claim"),
    "one of one failed for a soft reason": (spec(), (ring(member(A, State.FAILED, Reason.TIMEOUT)),), "failed_share"),
    "committed, but no longer served": (spec(), (ring(member(A, State.COMMITTED, serving=False)),), "failed_share"),
    "committed by its own word, contradicted by its labels": (
        spec(), (ring(member(A, State.COMMITTED, labelled=100, labelled_correct=70)),), "accuracy_below_claim"),
    "committed by its own word, worse than its champion": (
        spec(max_accuracy_drop=0.02),
        (ring(member(A, State.COMMITTED, labelled=400, labelled_correct=376, champion_labelled=400,
                     champion_labelled_correct=399)),), "accuracy_below_champion"),
    "committed by its own word, differs too much": (
        spec(max_disagreement=0.1), (ring(member(A, State.COMMITTED, shadow_rows=100, shadow_disagreements=30)),),
        "shadow_disagreement"),
    "labels of two spokes together tell what one could not": (
        spec(), (ring(member(A, State.COMMITTED, labelled=20, labelled_correct=14),
                      member(B, State.COMMITTED, labelled=20, labelled_correct=14)),), "accuracy_below_claim"),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAINST)
def test_evidence_against_the_version_aborts(name):
    given, rings, code = AGAINST[name]
    for state in (RolloutState.RUNNING, RolloutState.PAUSED):
        (step,) = decide(given, state, (*rings, WAITING_TWO), 0.96, 1000.0)
        assert isinstance(step, Abort)
        assert step.code == code


def test_a_failure_among_many_is_within_the_budget():
    many = [member(SpokeId(f"s{i}"), State.COMMITTED) for i in range(40)]
    rings = (ring(*many, member(A, State.FAILED, Reason.TIMEOUT)), WAITING_TWO)
    assert decide(spec(), RUN, rings, None, 1000.0) == (PassRing(0, "held for 0 s"),)


def test_superseded_spokes_speak_neither_way():
    rings = (ring(OK_A, member(B, State.FAILED, Reason.SUPERSEDED)), WAITING_TWO)
    assert decide(spec(), RUN, rings, None, 1000.0) == (PassRing(0, "held for 0 s"),)


def test_a_site_whose_scanner_has_turned_does_not_condemn_a_version_that_is_no_worse_there():
    turned = member(A, State.COMMITTED, labelled=100, labelled_correct=60, champion_labelled=100, champion_labelled_correct=58)
    good = member(B, State.COMMITTED, labelled=100, labelled_correct=97, champion_labelled=100, champion_labelled_correct=97)
    assert decide(spec(), RUN, (ring(turned, good), WAITING_TWO), 0.96, 1000.0) == (PassRing(0, "held for 0 s"),)


def test_a_turned_scanner_at_one_site_hides_no_fault_at_another():
    turned = member(A, State.COMMITTED, labelled=100, labelled_correct=60, champion_labelled=100, champion_labelled_correct=58)
    bad = member(B, State.COMMITTED, labelled=100, labelled_correct=60)
    (step,) = decide(spec(), RUN, (ring(turned, bad), WAITING_TWO), 0.96, 1000.0)
    assert isinstance(step, Abort)
    assert "0.770 expected there" in step.why

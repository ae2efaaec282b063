"""What a rollout does next, from evidence: `decide` is the whole rule, pure; hub/services/rollout_runner.py does the steps.

An ended update counts only by a signed report, and a commit only while the spoke's newest signed report says that the version is
what its serving process has mapped; so success can go backwards. A spoke that is silent is *missing*: it holds no place, is no
success and no failure, and has its own explicit budget.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from hub.rules.gates import (
    CLASS_BOUND,
    HARD,
    AccuracyBelowChampion,
    AccuracyBelowClaim,
    Disagreement,
    FailedShare,
    Gate,
    GateFinding,
    HardReasons,
    MaxMissing,
    MinCommitted,
    Tally,
    WilsonLower,
)
from hub.rules.rollout_plan import GateTerms, RolloutSpec
from model_formats.core.cpu_class import CpuClass
from model_formats.statistics.expected_accuracy import expected_accuracy
from sync.core.types import TERMINAL, Reason, SpokeId, State
from sync.protocol.messages import UpdateEvidence

__all__ = [
    "Abort",
    "Assign",
    "ClearReady",
    "Complete",
    "MarkReady",
    "PassRing",
    "Pause",
    "RingState",
    "RingView",
    "RolloutState",
    "SpokeView",
    "StartRing",
    "Step",
    "Wait",
    "abort_gate",
    "advance_gate",
    "decide",
    "tally",
]


class RolloutState(StrEnum):
    """Where a rollout is."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    ABORTED = "aborted"


class RingState(StrEnum):
    """Where a ring is."""

    WAITING = "waiting"
    RUNNING = "running"
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class SpokeView:
    """One member of a ring as the hub knows it. Times in seconds."""

    spoke: SpokeId
    online: bool
    assigned: float | None = None
    """When its directive got this version; None: not yet."""
    state: State | None = None
    """From the newest signed report about this version since the assignment."""
    reason: Reason = Reason.NONE
    serving: bool = False
    """The newest signed report of all says that this version is mapped."""
    evidence: UpdateEvidence = field(default_factory=UpdateEvidence)
    cpu_class: CpuClass | None = None
    """By its signed reports; None where it never said."""


@dataclass(frozen=True, slots=True)
class RingView:
    """One ring."""

    state: RingState
    members: tuple[SpokeView, ...]
    started: float | None = None
    ready: float | None = None
    """Since when all conditions but the soak hold."""


# ---- steps ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartRing:
    """Open a ring."""

    ring: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Give these spokes the version."""

    ring: int
    spokes: tuple[SpokeId, ...]


@dataclass(frozen=True, slots=True)
class MarkReady:
    """The soak begins."""

    ring: int


@dataclass(frozen=True, slots=True)
class ClearReady:
    """A condition no longer holds; the soak starts again."""

    ring: int


@dataclass(frozen=True, slots=True)
class PassRing:
    """The ring has shown enough."""

    ring: int
    why: str


@dataclass(frozen=True, slots=True)
class Complete:
    """All rings have passed."""


@dataclass(frozen=True, slots=True)
class Abort:
    """End it, and go back where the plan says so."""

    code: str
    why: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop and ask a person."""

    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do; `why` is what it waits for."""

    why: str


Step = StartRing | Assign | MarkReady | ClearReady | PassRing | Complete | Abort | Pause | Wait


# ---- the rule -------------------------------------------------------------------------------------------------------------


def decide(
    spec: RolloutSpec, state: RolloutState, rings: tuple[RingView, ...], claim: float | None, now: float
) -> tuple[Step, ...]:
    """The next steps of one rollout.

    1. An ended rollout does nothing.
    2. Evidence against the version ends a running or paused one.
    3. A paused or pending one waits.
    4. The open ring hands out places.
    5. It passes when its gate has held for the soak; after a ring that has shown enough, one without anybody passes at once.
    6. The next ring starts, or it is complete.
    """
    # 1
    if state in (RolloutState.COMPLETED, RolloutState.ABORTED):
        return ()
    # 2
    open_rings = [ring for ring in rings if ring.state is not RingState.WAITING]
    against = abort_gate(spec.gate)(tally(open_rings, claim))
    if open_rings and against.holds:
        return (Abort(against.code, against.why),)
    # 3
    if state is not RolloutState.RUNNING:
        return (Wait(state.value),)
    # 4, 5, 6
    for number, ring in enumerate(rings):
        if ring.state is RingState.WAITING:
            return (StartRing(number), *_assign(number, ring, spec.max_parallel))
        if ring.state is RingState.RUNNING:
            return _run(spec, number, ring, claim, now)
    return (Complete(),)


def tally(rings: list[RingView], claim: float | None = None) -> Tally:
    """Count what the members of some rings have shown.

    A fault that may be of one class of CPU (CLASS_BOUND) counts against the version only when no hope is left that it is right on
    another. Where nobody of the same class has committed, it then counts neither for nor against: the spoke is unfit.
    """
    members = [member for ring in rings for member in ring.members]
    excused = _excused(members)
    fit = {member.cpu_class for member in members if _outcome(member) == "committed"}
    outcome = ["unfit" if m.spoke in excused and m.cpu_class not in fit else _outcome(m) for m in members]
    evidence = [member.evidence for member in members if member.state in TERMINAL or member.state is State.PROBATION]
    return Tally(
        members=len(members),
        committed=outcome.count("committed"),
        failed=outcome.count("failed"),
        rejected=outcome.count("rejected"),
        unfit=outcome.count("unfit"),
        active=outcome.count("active") + outcome.count("waiting"),
        missing=outcome.count("missing"),
        hard=tuple(
            (str(m.spoke), m.reason) for m in members if m.state in TERMINAL and m.reason in HARD and m.spoke not in excused
        ),
        shadow_rows=sum(e.shadow_rows for e in evidence),
        shadow_disagreements=sum(e.shadow_disagreements for e in evidence),
        labelled=sum(e.labelled for e in evidence),
        labelled_correct=sum(e.labelled_correct for e in evidence),
        champion_labelled=sum(e.champion_labelled for e in evidence),
        champion_labelled_correct=sum(e.champion_labelled_correct for e in evidence),
        claim=claim,
        expected=_expected(evidence, claim),
    )


def _excused(members: list[SpokeView]) -> frozenset[SpokeId]:
    """Members with a fault that may be of their class alone: the version is right somewhere, or another class has yet to tell.

    A spoke that does not say its class is not excused.
    """
    off = [m for m in members if m.cpu_class and m.state in TERMINAL and m.reason in CLASS_BOUND]
    classes = {m.cpu_class for m in off}
    told = [(_outcome(m), m.cpu_class) for m in members]
    hope = any(seen == "committed" or (seen in ("active", "waiting") and here not in classes) for seen, here in told)
    return frozenset(m.spoke for m in off) if hope else frozenset()


def _expected(evidence: list[UpdateEvidence], claim: float | None) -> float | None:
    labelled = [e for e in evidence if e.labelled]
    if claim is None or not labelled:
        return claim
    each = (expected_accuracy(claim, e.champion_labelled_correct, e.champion_labelled) or 0.0 for e in labelled)
    return sum(e.labelled * share for e, share in zip(labelled, each, strict=True)) / sum(e.labelled for e in labelled)


def advance_gate(terms: GateTerms) -> Gate:
    """All that a ring must show."""
    return MinCommitted(terms.min_committed) & WilsonLower(terms.wilson_lower) & MaxMissing(terms.max_missing)


def abort_gate(terms: GateTerms) -> Gate:
    """Any of what ends a rollout."""
    return (
        HardReasons(terms.hard_reasons_abort)
        | AccuracyBelowClaim(terms.max_accuracy_drop)
        | AccuracyBelowChampion(terms.max_accuracy_drop)
        | Disagreement(terms.max_disagreement)
        | FailedShare(terms.max_failed)
    )


def _outcome(member: SpokeView) -> str:
    """One word a member; `waiting` for a place, `superseded` by another directive (then it speaks neither for nor against)."""
    if member.assigned is None:
        return "waiting" if member.online else "missing"
    if member.state is State.COMMITTED:
        return "committed" if member.serving else "failed"
    if member.state in (State.ROLLED_BACK, State.FAILED):
        return "superseded" if member.reason in (Reason.SUPERSEDED, Reason.CANCELLED) else "failed"
    if member.state is State.REJECTED:
        return "rejected"
    return "active" if member.online else "missing"


def _assign(number: int, ring: RingView, limit: int) -> tuple[Step, ...]:
    """Places: spokes that are offline get the word too (retained), but take no place."""
    fresh = [m for m in ring.members if m.assigned is None]
    online = [m.spoke for m in fresh if m.online]
    if limit:
        busy = sum(_outcome(m) == "active" for m in ring.members)
        online = online[: max(0, limit - busy)]
    chosen = (*online, *(m.spoke for m in fresh if not m.online))
    return (Assign(number, chosen),) if chosen else ()


def _run(spec: RolloutSpec, number: int, ring: RingView, claim: float | None, now: float) -> tuple[Step, ...]:
    if number > 0 and not ring.members:
        return (PassRing(number, "nobody is in it"),)
    places = _assign(number, ring, spec.max_parallel)
    if places:
        return places
    finding = advance_gate(spec.gate)(tally([ring], claim))
    if finding.holds:
        return _soak(spec.gate, number, ring, now)
    if ring.started is not None and now - ring.started > spec.gate.deadline_s:
        return (Pause(f"ring {number + 1} has passed its deadline: {finding.why}"),)
    return (*_unready(number, ring), _waiting(finding))


def _soak(terms: GateTerms, number: int, ring: RingView, now: float) -> tuple[Step, ...]:
    if terms.soak_s == 0 or (ring.ready is not None and now - ring.ready >= terms.soak_s):
        return (PassRing(number, f"held for {terms.soak_s} s"),)
    if ring.ready is None:
        return (MarkReady(number), Wait(f"soaks {terms.soak_s} s"))
    return (Wait(f"soaks {terms.soak_s - (now - ring.ready):.0f} s more"),)


def _unready(number: int, ring: RingView) -> tuple[Step, ...]:
    return () if ring.ready is None else (ClearReady(number),)


def _waiting(finding: GateFinding) -> Wait:
    return Wait(finding.why)

"""One rollout over virtual spokes, in virtual time, by the very rule that runs real ones (`hub.rules.rollout.decide`)."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    StartRing,
    decide,
)
from hub.rules.rollout_plan import RolloutSpec
from hub.simulate.spokes import SimulatedFleet, VirtualSpoke, make_fleet

__all__ = ["SimulationResult", "share_rings", "simulate"]


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """How it went. Times in virtual seconds."""

    state: str
    why: str
    seconds: float
    exposed: float
    """Share of the fleet at which the version ever answered."""
    rings_passed: int
    decisions: int


@dataclass(slots=True)
class _Ring:
    members: list[VirtualSpoke]
    state: RingState = RingState.WAITING
    started: float | None = None
    ready: float | None = None


def share_rings(spec: RolloutSpec, count: int) -> list[int]:
    """Sizes of the rings for a fleet of `count`: a named site is one spoke, `*` takes what is left."""
    named = [0 if "*" in ring.sites else len(ring.sites) for ring in spec.rings]
    rest = max(0, count - sum(named))
    stars = [i for i, ring in enumerate(spec.rings) if "*" in ring.sites]
    return [n + (rest // len(stars) if i in stars else 0) for i, n in enumerate(named)]


def simulate(
    spec: RolloutSpec,
    sizes: Sequence[int],
    truth: SimulatedFleet,
    *,
    seed: int = 0,
    step_s: float = 60.0,
    limit_s: float = 30 * 86400.0,
) -> SimulationResult:
    """Run a policy on rings of these sizes until it ends, pauses, or `limit_s` has passed. The same seed gives the same run."""
    fleet = make_fleet(sum(sizes), truth, seed=seed)
    rings, start = [], 0
    for size in sizes:
        rings.append(_Ring(fleet[start : start + size]))
        start += size
    state, why, now, decisions = RolloutState.RUNNING, "", 0.0, 0
    while state is RolloutState.RUNNING and now < limit_s:
        views = tuple(RingView(r.state, tuple(m.view(spec, now) for m in r.members), r.started, r.ready) for r in rings)
        steps = decide(spec, state, views, truth.claim, now)
        decisions += 1
        moved = False
        for step in steps:
            match step:
                case StartRing(n):
                    rings[n].state, rings[n].started, moved = RingState.RUNNING, now, True
                case Assign(n, spokes):
                    chosen = set(spokes)
                    for member in rings[n].members:
                        if member.id in chosen:
                            member.assigned = now
                    moved = True
                case MarkReady(n):
                    rings[n].ready = now
                case ClearReady(n):
                    rings[n].ready = None
                case PassRing(n):
                    rings[n].state, moved = RingState.PASSED, True
                case Complete():
                    state = RolloutState.COMPLETED
                case Abort(code, reason):
                    state, why = RolloutState.ABORTED, f"{code}: {reason}"
                    _revert(rings, now)
                case Pause(reason):
                    state, why = RolloutState.PAUSED, reason
                case _:
                    why = getattr(step, "why", "")
        now += 0.0 if moved else step_s
    exposed = sum(m.served(spec, now) for r in rings for m in r.members) / max(1, len(fleet))
    passed = sum(r.state is RingState.PASSED for r in rings)
    return SimulationResult(state.value, why, now, exposed, passed, decisions)


def _revert(rings: list[_Ring], now: float) -> None:
    for ring in rings:
        for member in ring.members:
            if member.assigned is not None:
                member.reverted = now

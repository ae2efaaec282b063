"""Runs rollouts: reads the records, asks `hub.rules.rollout.decide`, carries out its steps.

Each round is one transaction, so a restart at any point loses nothing and does nothing twice.
"""

from dataclasses import replace

from sqlalchemy import Connection

from hub.context import HubContext
from hub.rules.audit_action import AuditAction
from hub.rules.rollout import (
    Abort,
    Assign,
    ClearReady,
    Complete,
    MarkReady,
    PassRing,
    Pause,
    RingState,
    RolloutState,
    StartRing,
    Step,
    Wait,
    decide,
)
from hub.services.directives import next_generation, refresh_directive
from hub.services.rollout_views import find_released, kept_rollout, last_good, targets_of, views_of
from hub.store.audit import append_audit
from hub.store.directives import Assignment, assign, rollout_assignments, unassign
from hub.store.rollouts import KeptRollout, open_rollouts, set_ring, set_rollout, settled_rollouts
from hub.store.spokes import find_spoke, newcomers
from model_formats.core.types import ModelRef
from sync.core.types import SpokeId
from sync.protocol.messages import DesiredModel
from sync.trust.keys import Signer

__all__ = ["end", "tick"]

AT_ONCE = 100
"""Directives signed in one transaction; reports and commands come in between."""


def tick(hub: HubContext) -> dict[str, tuple[Step, ...]]:
    """One look at every open rollout, until nothing but waiting is left. Returns the steps by rollout.

    Spokes that enrolled after a rollout had begun, and that no open one reaches, get what it brought to their ring.
    """
    with hub.database.read() as db:
        names = [held.plan.name for held in open_rollouts(db)]
    done = {name: _advance(hub, name) for name in names}
    with hub.database.read() as db:
        due = [held for held in settled_rollouts(db) if newcomers(db, held.plan.spec.ref.name, since=held.created)]
    for held in due:
        with hub.database.begin() as db:
            _assign_newcomers(hub, db, held)
    return done


def _advance(hub: HubContext, name: str) -> tuple[Step, ...]:
    done: list[Step] = []
    for _ in range(2 * 50 + 2):  # each round starts or passes one ring; a plan has at most 50
        with hub.database.begin() as db:
            held = kept_rollout(db, name)
            version = find_released(db, held.plan.spec.ref)
            steps = decide(held.plan.spec, held.state, views_of(hub, db, held), version.claim, hub.now)
            for step in steps:
                _execute(hub, db, held, step)
        done += steps
        if not any(_goes_on(step) for step in steps):
            break
    return tuple(done)


def _goes_on(step: Step) -> bool:
    """Whether there is more to do at once."""
    return isinstance(step, StartRing | PassRing) or (isinstance(step, Assign) and len(step.spokes) > AT_ONCE)


def _execute(hub: HubContext, db: Connection, held: KeptRollout, step: Step) -> None:
    name, now = held.plan.name, hub.now
    match step:
        case StartRing(ring):
            set_ring(db, name, ring, state=RingState.RUNNING.value, started=now, ready=None)
            set_rollout(db, name, held.state, "", now=now)
            append_audit(db, "hub", AuditAction.ROLLOUT_RING, name, now=now, details={"ring": held.rings[ring].name})
        case Assign(ring, spokes):
            director = hub.repository.director
            for spoke in spokes[:AT_ONCE]:
                _give(hub, db, held, ring, spoke, director)
        case MarkReady(ring):
            set_ring(db, name, ring, ready=now)
        case ClearReady(ring):
            set_ring(db, name, ring, ready=None)
        case PassRing(ring, why):
            set_ring(db, name, ring, state=RingState.PASSED.value, finished=now)
            append_audit(
                db, "hub", AuditAction.ROLLOUT_PASSED, name, now=now, details={"ring": held.rings[ring].name, "why": why}
            )
        case Complete():
            set_rollout(db, name, RolloutState.COMPLETED, "", now=now)
            append_audit(db, "hub", AuditAction.ROLLOUT_COMPLETED, name, now=now)
        case Abort():
            end(hub, db, held, step, "hub")
        case Pause(why):
            set_rollout(db, name, RolloutState.PAUSED, why, now=now)
            append_audit(db, "hub", AuditAction.ROLLOUT_PAUSED, name, now=now, details={"why": why})
        case Wait(why):
            if held.state is RolloutState.RUNNING and why != held.reason:
                set_rollout(db, name, held.state, why, now=now)


def _assign_newcomers(hub: HubContext, db: Connection, held: KeptRollout) -> None:
    fresh = newcomers(db, held.plan.spec.ref.name, since=held.created)
    director = hub.repository.director
    for ring, members in enumerate(targets_of(held.plan, find_released(db, held.plan.spec.ref), fresh).rings):
        for spoke in members[:AT_ONCE]:
            _give(hub, db, held, ring, spoke, director)
            append_audit(db, "hub", AuditAction.ROLLOUT_WELCOME, held.plan.name, now=hub.now, details={"spoke": str(spoke)})


def _give(hub: HubContext, db: Connection, held: KeptRollout, ring: int, spoke: SpokeId, director: Signer) -> None:
    """Put the version into one spoke's directive, and keep what it goes back to."""
    spec = held.plan.spec
    terms = DesiredModel(
        model=spec.ref.name,
        version=spec.ref.version,
        index=held.index,
        rollout=held.plan.name,
        transport=spec.transport,
        shadow=spec.shadow,
        probation=spec.probation,
    )
    good = last_good(db, spoke, spec.ref)
    assign(db, Assignment(spoke, spec.ref, held.index, held.plan.name, ring, terms, hub.now, next_generation(db, spoke), good))
    _redirect(hub, db, spoke, director)


def end(hub: HubContext, db: Connection, held: KeptRollout, step: Abort, who: str) -> None:
    """End the rollout; each spoke that it has reached is sent back to what it served before, or retires the model."""
    set_rollout(db, held.plan.name, RolloutState.ABORTED, f"{step.code}: {step.why}", now=hub.now)
    reached = rollout_assignments(db, held.plan.name)
    if held.plan.spec.on_abort == "revert":
        director = hub.repository.director
        for assignment in reached:
            _revert(hub, db, assignment, director)
    details = {"code": step.code, "why": step.why, "reached": str(len(reached)), "on_abort": held.plan.spec.on_abort}
    append_audit(db, who, AuditAction.ROLLOUT_ABORT, held.plan.name, now=hub.now, details=details)


def _revert(hub: HubContext, db: Connection, assignment: Assignment, director: Signer) -> None:
    if assignment.good is None:
        unassign(db, assignment.spoke, assignment.ref.name)
    else:
        ref, index = ModelRef(assignment.ref.name, assignment.good[0]), assignment.good[1]
        terms = DesiredModel(model=ref.name, version=ref.version, index=index, transport=assignment.terms.transport)
        generation = next_generation(db, assignment.spoke)
        back = replace(
            assignment, ref=ref, index=index, rollout=None, ring=None, terms=terms, assigned=hub.now, generation=generation
        )
        assign(db, back)
    _redirect(hub, db, assignment.spoke, director)


def _redirect(hub: HubContext, db: Connection, spoke: SpokeId, director: Signer) -> None:
    """Tell a spoke; one that was revoked meanwhile is told nothing more, and must not hold up the others."""
    known = find_spoke(db, spoke)
    if known is None or known.revoked is not None:
        return
    refresh_directive(db, director, spoke, now=hub.now, life_s=hub.settings.directive_ttl_s, ceiling=hub.ceiling)
    hub.wake.set()

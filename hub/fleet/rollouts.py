"""Rollouts, executed: read what is known, ask `hub.rules.rollout.decide`, do the steps.

Each round is one transaction, so a restart at any point loses nothing and does nothing twice.
"""

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from hub.fleet.directives import next_generation, refresh_directive
from hub.hub import Hub
from hub.rules.access import approvals_missing
from hub.rules.plan import PlanInvalid, RolloutPlan
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
    Step,
    Wait,
    decide,
)
from hub.rules.targeting import Member, Targets, resolve
from hub.store.audit import append_audit
from hub.store.directives import Assignment, assign, find_assignment, rollout_assignments, unassign
from hub.store.reports import KeptReport, latest_about
from hub.store.rollouts import (
    KeptRollout,
    add_approval,
    add_rollout,
    approvers_of,
    find_rollout,
    open_rollouts,
    set_ring,
    set_rollout,
)
from hub.store.spokes import Spoke, find_spoke, list_spokes
from hub.store.versions import Version, find_version, list_versions
from model_formats.errors import OperatorError
from model_formats.types import ModelRef
from sync.messages import DesiredModel
from sync.trust.keys import Signer
from sync.types import SpokeId, State

__all__ = [
    "Preview",
    "RolloutConflict",
    "RolloutUnknown",
    "abort",
    "apply",
    "approve",
    "find_released",
    "last_good",
    "look",
    "pause",
    "preview",
    "resume",
    "tick",
]

AT_ONCE = 100
"""Directives signed in one transaction; reports and commands come in between."""


class RolloutUnknown(OperatorError):
    """No rollout of this name."""

    code = "rollout_unknown"
    http = 404
    hint = "`hub rollout list` shows all."


class RolloutConflict(OperatorError):
    """Not possible in the state that the rollout is in."""

    code = "rollout_conflict"
    hint = "`hub rollout show NAME` tells where it is."


@dataclass(frozen=True, slots=True)
class Preview:
    """What a plan would do: who is in which ring."""

    rings: tuple[tuple[str, tuple[SpokeId, ...]], ...]


# ---- what operators do ----------------------------------------------------------------------------------------------------


def preview(hub: Hub, plan: RolloutPlan) -> Preview:
    """Check a plan against what is released and who is enrolled, and change nothing. Raises PlanInvalid that names the rule."""
    with hub.database.read() as db:
        return _check(db, plan)


def apply(hub: Hub, plan: RolloutPlan, author: str) -> KeptRollout:
    """Start a rollout, or leave it waiting for approvals.

    The same document again changes nothing; another under its name is refused. Raises PlanInvalid, RolloutConflict.
    """
    with hub.database.begin() as db:
        held = find_rollout(db, plan.name)
        if held is not None:
            if held.plan == plan:
                return held
            raise RolloutConflict(
                f"a rollout {plan.name} exists with another content", hint="Give the new one a name of its own."
            )
        _check(db, plan)
        others = open_rollouts(db, plan.spec.ref.name)
        if others:
            raise RolloutConflict(
                f"{others[0].plan.name} of {plan.spec.ref.name} is {others[0].state.value}",
                hint="Wait for it, or abort it first.",
            )
        state = RolloutState.PENDING if plan.spec.approvals else RolloutState.RUNNING
        version = find_released(db, plan.spec.ref)
        add_rollout(db, plan, version.index, author, state, now=hub.now)
        append_audit(
            db, author, "rollout.apply", plan.name, now=hub.now, details={"model": plan.spec.model, "state": state.value}
        )
        found = _find(db, plan.name)
    hub.wake.set()
    return found


def approve(hub: Hub, name: str, who: str) -> KeptRollout:
    """Say yes to a pending rollout; with enough yeses from others than its author it runs. Raises RolloutConflict."""
    with hub.database.begin() as db:
        held = _find(db, name)
        if held.state is not RolloutState.PENDING or who == held.author:
            why = "its author may not approve it" if who == held.author else f"{name} is {held.state.value}, not pending"
            raise RolloutConflict(why)
        add_approval(db, name, who, now=hub.now)
        left = approvals_missing(held.plan.spec.approvals, held.author, approvers_of(db, name))
        append_audit(db, who, "rollout.approve", name, now=hub.now, details={"missing": str(left)})
        set_rollout(db, name, RolloutState.PENDING if left else RolloutState.RUNNING, _approvals(left), now=hub.now)
        found = _find(db, name)
    hub.wake.set()
    return found


def pause(hub: Hub, name: str, who: str) -> KeptRollout:
    """No further spokes; those under way go on. Raises RolloutConflict."""
    return _move(hub, name, who, "rollout.pause", {RolloutState.RUNNING}, RolloutState.PAUSED)


def resume(hub: Hub, name: str, who: str) -> KeptRollout:
    """Go on. Raises RolloutConflict."""
    return _move(hub, name, who, "rollout.resume", {RolloutState.PAUSED}, RolloutState.RUNNING)


def abort(hub: Hub, name: str, who: str, why: str = "") -> KeptRollout:
    """End it by hand; reached spokes go back where the plan says so. Raises RolloutConflict."""
    with hub.database.begin() as db:
        held = _find(db, name)
        if held.state in (RolloutState.COMPLETED, RolloutState.ABORTED):
            raise RolloutConflict(f"{name} is {held.state.value}")
        _abort(hub, db, held, Abort("by_hand", why or f"by {who}"), who)
        found = _find(db, name)
    hub.wake.set()
    return found


def look(hub: Hub, name: str) -> tuple[KeptRollout, tuple[RingView, ...]]:
    """A rollout and what is known of every member. Raises RolloutUnknown."""
    with hub.database.read() as db:
        held = _find(db, name)
        return held, _views(hub, db, held)


# ---- what the loop does ---------------------------------------------------------------------------------------------------


def tick(hub: Hub) -> dict[str, tuple[Step, ...]]:
    """One look at every open rollout, until nothing but waiting is left. Returns the steps by rollout."""
    with hub.database.read() as db:
        names = [held.plan.name for held in open_rollouts(db)]
    return {name: _advance(hub, name) for name in names}


def _advance(hub: Hub, name: str) -> tuple[Step, ...]:
    done: list[Step] = []
    for _ in range(2 * 50 + 2):  # each round starts or passes one ring; a plan has at most 50
        with hub.database.begin() as db:
            held = _find(db, name)
            version = find_released(db, held.plan.spec.ref)
            steps = decide(held.plan.spec, held.state, _views(hub, db, held), version.claim, hub.now)
            for step in steps:
                _execute(hub, db, held, step)
        done += steps
        if not any(_goes_on(step) for step in steps):
            break
    return tuple(done)


def _goes_on(step: Step) -> bool:
    """Whether there is more to do at once."""
    return isinstance(step, StartRing | PassRing) or (isinstance(step, Assign) and len(step.spokes) > AT_ONCE)


def _execute(hub: Hub, db: Connection, held: KeptRollout, step: Step) -> None:
    name, now = held.plan.name, hub.now
    match step:
        case StartRing(ring):
            set_ring(db, name, ring, state=RingState.RUNNING.value, started=now, ready=None)
            set_rollout(db, name, held.state, "", now=now)
            append_audit(db, "hub", "rollout.ring", name, now=now, details={"ring": held.rings[ring].name})
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
            append_audit(db, "hub", "rollout.passed", name, now=now, details={"ring": held.rings[ring].name, "why": why})
        case Complete():
            set_rollout(db, name, RolloutState.COMPLETED, "", now=now)
            append_audit(db, "hub", "rollout.completed", name, now=now)
        case Abort():
            _abort(hub, db, held, step, "hub")
        case Pause(why):
            set_rollout(db, name, RolloutState.PAUSED, why, now=now)
            append_audit(db, "hub", "rollout.paused", name, now=now, details={"why": why})
        case Wait(why):
            if held.state is RolloutState.RUNNING and why != held.reason:
                set_rollout(db, name, held.state, why, now=now)


def _give(hub: Hub, db: Connection, held: KeptRollout, ring: int, spoke: SpokeId, director: Signer) -> None:
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


def _abort(hub: Hub, db: Connection, held: KeptRollout, step: Abort, who: str) -> None:
    """End the rollout; each spoke that it has reached is sent back to what it served before, or retires the model."""
    set_rollout(db, held.plan.name, RolloutState.ABORTED, f"{step.code}: {step.why}", now=hub.now)
    reached = rollout_assignments(db, held.plan.name)
    if held.plan.spec.on_abort == "revert":
        director = hub.repository.director
        for assignment in reached:
            _revert(hub, db, assignment, director)
    details = {"code": step.code, "why": step.why, "reached": str(len(reached)), "on_abort": held.plan.spec.on_abort}
    append_audit(db, who, "rollout.abort", held.plan.name, now=hub.now, details=details)


def _revert(hub: Hub, db: Connection, assignment: Assignment, director: Signer) -> None:
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


def _redirect(hub: Hub, db: Connection, spoke: SpokeId, director: Signer) -> None:
    refresh_directive(db, director, spoke, now=hub.now, life_s=hub.settings.directive_ttl_s, ceiling=hub.ceiling)
    hub.wake.set()


# ---- what is known --------------------------------------------------------------------------------------------------------


def _views(hub: Hub, db: Connection, held: KeptRollout) -> tuple[RingView, ...]:
    fleet = {spoke.id: spoke for spoke in list_spokes(db)}
    version = find_released(db, held.plan.spec.ref)
    targets = _targets(held.plan, version, list(fleet.values()))
    told = latest_about(db, held.plan.spec.ref.name, held.index)
    given = {a.spoke: a for a in rollout_assignments(db, held.plan.name)}
    heard, aborted = hub.now - hub.settings.silent_after_s, held.state is RolloutState.ABORTED
    rings = []
    for ring, members in zip(held.rings, targets.rings, strict=True):
        views = (
            _view(held.index, fleet[member], given.get(member), told.get(member), heard, aborted=aborted) for member in members
        )
        rings.append(RingView(ring.state, tuple(views), ring.started, ring.ready))
    return tuple(rings)


def _view(
    index: str, spoke: Spoke, given: Assignment | None, told: KeptReport | None, heard: float, *, aborted: bool
) -> SpokeView:
    """What is known of one spoke and one version. After an abort nothing is assigned any more, and the last word stands."""
    serving = any(s.index == index for s in spoke.serving)
    online = spoke.heard_since(heard)
    if given is None and aborted and told is not None:
        return SpokeView(spoke.id, online, told.received, told.state, told.reason, serving, told.evidence)
    if given is None:
        return SpokeView(spoke.id, online, serving=serving)
    fresh = told is not None and (told.generation >= given.generation or (serving and told.state is State.COMMITTED))
    if told is None or not fresh:
        return SpokeView(spoke.id, online, given.assigned, serving=serving)
    return SpokeView(spoke.id, online, given.assigned, told.state, told.reason, serving, told.evidence)


def last_good(db: Connection, spoke: SpokeId, ref: ModelRef) -> tuple[int, str] | None:
    """What to go back to: what it serves by its signed word, else what it was told before."""
    row = find_spoke(db, spoke)
    others = (s for s in (row.serving if row else ()) if s.model == ref.name and s.version != ref.version)
    serving = next(((s.version, s.index) for s in others), None)
    before = find_assignment(db, spoke, ref.name)
    if serving is not None or before is None:
        return serving
    return before.good if before.ref == ref else (before.ref.version, before.index)


# ---- checks ---------------------------------------------------------------------------------------------------------------


def _check(db: Connection, plan: RolloutPlan) -> Preview:
    """1. The version is released. 2. Every site named is known. 3. None is outside the package's zones and regimes. 4. No ring
    asks for more commits than it has spokes. 5. Where an abort reverts, the way back is granted."""
    version = find_released(db, plan.spec.ref)  # 1
    fleet = list_spokes(db)
    targets = _targets(plan, version, fleet)
    if targets.unknown:  # 2
        raise PlanInvalid(f"spec.rings: no spoke is enrolled at {', '.join(targets.unknown)}", hint="`hub spoke list` shows all.")
    if targets.forbidden:  # 3
        first = targets.forbidden[0]
        raise PlanInvalid(
            f"spec.rings: {first.spoke} may not have {plan.spec.model}: {first.reason.value}",
            hint="The package's residency label names its zones and regimes; build it with others, or leave the site out.",
        )
    _check_sizes(plan, targets)  # 4
    _check_fallback(plan, version, targets, fleet)  # 5
    names = (ring.name for ring in plan.spec.rings)
    return Preview(tuple(zip(names, targets.rings, strict=True)))


def _check_sizes(plan: RolloutPlan, targets: Targets) -> None:
    for ring, members in zip(plan.spec.rings, targets.rings, strict=True):
        if "*" not in ring.sites and len(members) < plan.spec.gate.min_committed:
            raise PlanInvalid(
                f"spec.gate.min_committed: {plan.spec.gate.min_committed} asked, ring {ring.name} has {len(members)} spokes"
            )


def _check_fallback(plan: RolloutPlan, version: Version, targets: Targets, fleet: list[Spoke]) -> None:
    if plan.spec.on_abort != "revert":
        return
    members = {member for ring in targets.rings for member in ring}
    for spoke in fleet:
        for served in spoke.serving:
            below = served.model == plan.spec.ref.name and served.version < plan.spec.ref.version
            if spoke.id in members and below and served.version not in version.fallback:
                raise PlanInvalid(
                    f"spec.on_abort: {spoke.id} serves {served.model}@{served.version}, and {plan.spec.model} has no grant to go"
                    " back to it",
                    hint=f"Publish with `--fallback {served.version}`, or set on_abort: hold.",
                )


def _targets(plan: RolloutPlan, version: Version, fleet: list[Spoke]) -> Targets:
    members = [Member(spoke.id, spoke.zone, spoke.regime) for spoke in fleet]
    return resolve(plan.spec.rings, members, version.zones, version.regimes)


def find_released(db: Connection, ref: ModelRef) -> Version:
    """A released version. Raises PlanInvalid that lists what there is."""
    found = find_version(db, ref)
    if found is None:
        known = ", ".join(str(v.ref) for v in list_versions(db, ref.name)) or "none"
        raise PlanInvalid(
            f"spec.model: {ref} is not released (released: {known})", hint="`hub model publish` releases a version."
        )
    return found


def _find(db: Connection, name: str) -> KeptRollout:
    found = find_rollout(db, name)
    if found is None:
        raise RolloutUnknown(f"there is no rollout {name}")
    return found


def _move(hub: Hub, name: str, who: str, action: str, allowed: set[RolloutState], to: RolloutState) -> KeptRollout:
    with hub.database.begin() as db:
        held = _find(db, name)
        if held.state not in allowed:
            raise RolloutConflict(f"{name} is {held.state.value}")
        set_rollout(db, name, to, f"by {who}" if to is RolloutState.PAUSED else "", now=hub.now)
        append_audit(db, who, action, name, now=hub.now)
        found = _find(db, name)
    hub.wake.set()
    return found


def _approvals(left: int) -> str:
    return f"{left} approvals missing" if left else ""

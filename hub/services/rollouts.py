"""What operators do with rollouts: preview, apply, approve, pause, resume, abort. `rollout_runner.py` carries them out."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from hub.context import HubContext
from hub.rules.access import approvals_missing
from hub.rules.audit_action import AuditAction
from hub.rules.rollout import Abort, RingView, RolloutState
from hub.rules.rollout_plan import PlanInvalid, RolloutPlan
from hub.rules.targeting import Targets
from hub.services.rollout_runner import end
from hub.services.rollout_views import RolloutUnknown, find_released, kept_rollout, targets_of, views_of
from hub.store.audit import append_audit
from hub.store.rollouts import KeptRollout, add_approval, add_rollout, approvers_of, find_rollout, open_rollouts, set_rollout
from hub.store.spokes import Spoke, list_spokes
from hub.store.versions import VersionRecord
from model_formats.core.errors import OperatorError
from sync.core.types import SpokeId

__all__ = ["Preview", "RolloutConflict", "RolloutUnknown", "abort", "apply", "approve", "look", "pause", "preview", "resume"]


class RolloutConflict(OperatorError):
    """Not possible in the state that the rollout is in."""

    code = "rollout_conflict"
    hint = "`hub rollout show NAME` tells where it is."


@dataclass(frozen=True, slots=True)
class Preview:
    """What a plan would do: who is in which ring."""

    rings: tuple[tuple[str, tuple[SpokeId, ...]], ...]


# ---- what operators do ----------------------------------------------------------------------------------------------------


def preview(hub: HubContext, plan: RolloutPlan) -> Preview:
    """Check a plan against what is released and who is enrolled, and change nothing. Raises PlanInvalid that names the rule."""
    with hub.database.read() as db:
        return _check(db, plan, hub.settings.zones)


def apply(hub: HubContext, plan: RolloutPlan, author: str) -> KeptRollout:
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
        _check(db, plan, hub.settings.zones)
        others = open_rollouts(db, plan.spec.ref.name)
        if others:
            raise RolloutConflict(
                f"{others[0].plan.name} of {plan.spec.ref.name} is {others[0].state.value}",
                hint="Wait for it, or abort it first.",
            )
        state = RolloutState.PENDING if plan.spec.approvals else RolloutState.RUNNING
        version = find_released(db, plan.spec.ref)
        add_rollout(db, plan, version.index, author, state, now=hub.now)
        set_rollout(db, plan.name, state, _approvals(plan.spec.approvals), now=hub.now)
        append_audit(
            db,
            author,
            AuditAction.ROLLOUT_APPLY,
            plan.name,
            now=hub.now,
            details={"model": plan.spec.model, "state": state.value},
        )
        found = kept_rollout(db, plan.name)
    hub.wake.set()
    return found


def approve(hub: HubContext, name: str, who: str) -> KeptRollout:
    """Say yes to a pending rollout; with enough yeses from others than its author it runs. Raises RolloutConflict."""
    with hub.database.begin() as db:
        held = kept_rollout(db, name)
        if held.state is not RolloutState.PENDING or who == held.author:
            why = "its author may not approve it" if who == held.author else f"{name} is {held.state.value}, not pending"
            raise RolloutConflict(why)
        add_approval(db, name, who, now=hub.now)
        left = approvals_missing(held.plan.spec.approvals, held.author, approvers_of(db, name))
        append_audit(db, who, AuditAction.ROLLOUT_APPROVE, name, now=hub.now, details={"missing": str(left)})
        set_rollout(db, name, RolloutState.PENDING if left else RolloutState.RUNNING, _approvals(left), now=hub.now)
        found = kept_rollout(db, name)
    hub.wake.set()
    return found


def pause(hub: HubContext, name: str, who: str) -> KeptRollout:
    """No further spokes; those under way go on. Raises RolloutConflict."""
    return _move(hub, name, who, AuditAction.ROLLOUT_PAUSE, {RolloutState.RUNNING}, RolloutState.PAUSED)


def resume(hub: HubContext, name: str, who: str) -> KeptRollout:
    """Go on. Raises RolloutConflict."""
    return _move(hub, name, who, AuditAction.ROLLOUT_RESUME, {RolloutState.PAUSED}, RolloutState.RUNNING)


def abort(hub: HubContext, name: str, who: str, why: str = "") -> KeptRollout:
    """End it by hand; reached spokes go back where the plan says so. Raises RolloutConflict."""
    with hub.database.begin() as db:
        held = kept_rollout(db, name)
        if held.state in (RolloutState.COMPLETED, RolloutState.ABORTED):
            raise RolloutConflict(f"{name} is {held.state.value}")
        end(hub, db, held, Abort("by_hand", why or f"by {who}"), who)
        found = kept_rollout(db, name)
    hub.wake.set()
    return found


def look(hub: HubContext, name: str) -> tuple[KeptRollout, tuple[RingView, ...]]:
    """A rollout and what is known of every member. Raises RolloutUnknown."""
    with hub.database.read() as db:
        held = kept_rollout(db, name)
        return held, views_of(hub, db, held)


# ---- checks ---------------------------------------------------------------------------------------------------------------


def _check(db: Connection, plan: RolloutPlan, zones: Sequence[str]) -> Preview:
    """1. The version is released. 2. Sites and zones named are known. 3. None is outside the package's zones and regimes.
    4. No ring asks for more commits than it has spokes. 5. Where an abort reverts, the way back is granted."""
    version = find_released(db, plan.spec.ref)  # 1
    fleet = list_spokes(db)
    targets = targets_of(plan, version, fleet)
    if targets.unknown:  # 2
        raise PlanInvalid(f"spec.rings: no spoke is enrolled at {', '.join(targets.unknown)}", hint="`hub spoke list` shows all.")
    strange = sorted({zone for ring in plan.spec.rings for zone in ring.zones} - set(zones))
    if strange:
        raise PlanInvalid(
            f"spec.rings: zone {strange[0]!r} is not among {', '.join(zones)}",
            hint="Correct it, or add it to `zones` in hub.toml: a ring for an unknown zone would reach nobody.",
        )
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


def _check_fallback(plan: RolloutPlan, version: VersionRecord, targets: Targets, fleet: list[Spoke]) -> None:
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


def _move(hub: HubContext, name: str, who: str, action: AuditAction, allowed: set[RolloutState], to: RolloutState) -> KeptRollout:
    with hub.database.begin() as db:
        held = kept_rollout(db, name)
        if held.state not in allowed:
            raise RolloutConflict(f"{name} is {held.state.value}")
        set_rollout(db, name, to, f"by {who}" if to is RolloutState.PAUSED else "", now=hub.now)
        append_audit(db, who, action, name, now=hub.now)
        found = kept_rollout(db, name)
    hub.wake.set()
    return found


def _approvals(left: int) -> str:
    return f"waits for {left} approval{'s' if left > 1 else ''}" if left else ""

"""The state of a rollout for people: its plan, its rings, and the signed reports of every member."""

from dataclasses import replace

from sqlalchemy import Connection

from hub.context import HubContext
from hub.rules.rollout import RingView, RolloutState, SpokeView
from hub.rules.rollout_plan import PlanInvalid, RolloutPlan
from hub.rules.targeting import Targets, TargetSpoke, resolve
from hub.store.directives import Assignment, find_assignment, rollout_assignments
from hub.store.reports import KeptReport, latest_about
from hub.store.rollouts import KeptRollout, find_rollout
from hub.store.spokes import Spoke, find_spoke, list_spokes
from hub.store.versions import VersionRecord, find_version, list_versions
from model_formats.core.errors import OperatorError
from model_formats.core.types import ModelRef
from sync.core.types import SpokeId, State

__all__ = ["RolloutUnknown", "find_released", "last_good", "kept_rollout", "targets_of", "views_of"]


class RolloutUnknown(OperatorError):
    """No rollout of this name."""

    code = "rollout_unknown"
    http = 404
    hint = "`hub rollout list` shows all."


def kept_rollout(db: Connection, name: str) -> KeptRollout:
    """A rollout by its name. Raises RolloutUnknown."""
    found = find_rollout(db, name)
    if found is None:
        raise RolloutUnknown(f"there is no rollout {name}")
    return found


def find_released(db: Connection, ref: ModelRef) -> VersionRecord:
    """A released version. Raises PlanInvalid that lists what there is."""
    found = find_version(db, ref)
    if found is None:
        known = ", ".join(str(v.ref) for v in list_versions(db, ref.name)) or "none"
        raise PlanInvalid(
            f"spec.model: {ref} is not released (released: {known})", hint="`hub model publish` releases a version."
        )
    return found


def targets_of(plan: RolloutPlan, version: VersionRecord, fleet: list[Spoke]) -> Targets:
    """Which of these spokes are in which ring."""
    members = [TargetSpoke(spoke.id, spoke.zone, spoke.regime) for spoke in fleet]
    return resolve(plan.spec.rings, members, version.zones, version.regimes)


def views_of(hub: HubContext, db: Connection, held: KeptRollout) -> tuple[RingView, ...]:
    """What is known of every member, ring by ring."""
    fleet = {spoke.id: spoke for spoke in list_spokes(db)}
    version = find_released(db, held.plan.spec.ref)
    targets = targets_of(held.plan, version, list(fleet.values()))
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
    known = told.evidence.cpu_class if told is not None else None
    cpu_class = known or next((s.cpu_class for s in spoke.serving), None)
    blank = SpokeView(spoke.id, online, serving=serving, cpu_class=cpu_class)
    if given is None and aborted and told is not None:
        return replace(blank, assigned=told.received, state=told.state, reason=told.reason, evidence=told.evidence)
    if given is None:
        return blank
    fresh = told is not None and (told.generation >= given.generation or (serving and told.state is State.COMMITTED))
    if told is None or not fresh:
        return replace(blank, assigned=given.assigned)
    return replace(blank, assigned=given.assigned, state=told.state, reason=told.reason, evidence=told.evidence)


def last_good(db: Connection, spoke: SpokeId, ref: ModelRef) -> tuple[int, str] | None:
    """What to go back to: what it serves by its signed word, else what it was told before."""
    row = find_spoke(db, spoke)
    others = (s for s in (row.serving if row else ()) if s.model == ref.name and s.version != ref.version)
    serving = next(((s.version, s.index) for s in others), None)
    before = find_assignment(db, spoke, ref.name)
    if serving is not None or before is None:
        return serving
    return before.good if before.ref == ref else (before.ref.version, before.index)

"""`/rollouts`: plans, where they are, and on what evidence."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from hub.api.access import HubPart, needs
from hub.api.spokes import when
from hub.api.values import AS_IT_IS
from hub.context import HubContext
from hub.rules.access import Permission, Principal
from hub.rules.rollout import RingState, RingView, RolloutState, SpokeView, tally
from hub.rules.rollout_plan import RolloutPlan
from hub.services import rollouts as runner
from hub.store.rollouts import KeptRollout, approvers_of, list_rollouts
from sync.protocol.messages import UpdateEvidence

__all__ = ["RolloutSummary", "RolloutView", "router", "whole"]

router = APIRouter(prefix="/rollouts", tags=["rollouts"])
Reader = Annotated[Principal, Depends(needs(Permission.READ))]
Planner = Annotated[Principal, Depends(needs(Permission.PLAN))]
Operator = Annotated[Principal, Depends(needs(Permission.STEER))]
Approver = Annotated[Principal, Depends(needs(Permission.APPROVE))]


class RingMemberView(BaseModel):
    """One spoke of a ring."""

    spoke: str
    online: bool
    assigned: datetime | None
    state: str | None
    reason: str
    serving: bool
    cpu_class: str | None
    """By its signed reports; None where it never said."""
    evidence: Annotated[UpdateEvidence, AS_IT_IS]


class RingReport(BaseModel):
    """One ring and its counts."""

    name: str
    state: str
    started: datetime | None
    finished: datetime | None
    committed: int
    failed: int
    rejected: int
    unfit: int
    """No variant is right on their class of CPU, and the version is right on another."""
    active: int
    missing: int
    members: list[RingMemberView]


class RolloutSummary(BaseModel):
    """One line a rollout. `reason`: what it waits for, or why it ended."""

    name: str
    model: str
    state: str
    reason: str
    author: str
    created: datetime | None
    changed: datetime | None


class RolloutView(RolloutSummary):
    """A rollout whole."""

    index: str
    approved_by: list[str]
    plan: dict[str, Any]
    rings: list[RingReport]


class PreviewView(BaseModel):
    """Who would be in which ring."""

    name: str
    model: str
    rings: dict[str, list[str]]


class ReasonBody(BaseModel):
    """A word to the audit log."""

    model_config = ConfigDict(extra="forbid")

    why: str = ""


@router.get("")
def rollouts(hub: HubPart, _who: Reader) -> list[RolloutSummary]:
    """All rollouts, newest first."""
    with hub.database.read() as db:
        return [_summary(held) for held in list_rollouts(db)]


@router.post("")
async def apply(request: Request, hub: HubPart, who: Planner, *, dry_run: bool = False) -> RolloutView | PreviewView:
    """Apply a rollout document (YAML or JSON); with `dry_run`, only check it and tell who would be in which ring."""
    plan = RolloutPlan.parse(await request.body())
    if dry_run:
        found = await run_in_threadpool(runner.preview, hub, plan)
        return PreviewView(name=plan.name, model=plan.spec.model, rings={n: [str(s) for s in m] for n, m in found.rings})
    await run_in_threadpool(runner.apply, hub, plan, who.name)
    return await run_in_threadpool(whole, hub, plan.name)


@router.get("/{name}")
def rollout(name: str, hub: HubPart, _who: Reader) -> RolloutView:
    """One rollout with its evidence."""
    return whole(hub, name)


@router.post("/{name}/approve")
def approve(name: str, hub: HubPart, who: Approver) -> RolloutView:
    """Say yes."""
    runner.approve(hub, name, who.name)
    return whole(hub, name)


@router.post("/{name}/pause")
def pause(name: str, hub: HubPart, who: Operator) -> RolloutView:
    """No further spokes."""
    runner.pause(hub, name, who.name)
    return whole(hub, name)


@router.post("/{name}/resume")
def resume(name: str, hub: HubPart, who: Operator) -> RolloutView:
    """Go on."""
    runner.resume(hub, name, who.name)
    return whole(hub, name)


@router.post("/{name}/abort")
def abort(name: str, hub: HubPart, who: Operator, word: ReasonBody | None = None) -> RolloutView:
    """End it; reached spokes go back where the plan says so."""
    runner.abort(hub, name, who.name, word.why if word else "")
    return whole(hub, name)


def whole(hub: HubContext, name: str) -> RolloutView:
    """A rollout with its rings and all that is known of their members."""
    held, views = runner.look(hub, name)
    with hub.database.read() as db:
        approved = sorted(approvers_of(db, name))
    return RolloutView(
        **_summary(held).model_dump(),
        index=held.index,
        approved_by=approved,
        plan=held.plan.plain,
        rings=[_ring(held, number, view) for number, view in enumerate(views)],
    )


def _summary(held: KeptRollout) -> RolloutSummary:
    return RolloutSummary(
        name=held.plan.name,
        model=held.plan.spec.model,
        state=held.state.value,
        reason=held.reason,
        author=held.author,
        created=when(held.created),
        changed=when(held.changed),
    )


def _ring(held: KeptRollout, number: int, view: RingView) -> RingReport:
    counts, kept = tally([view]), held.rings[number]
    stopped = held.state is RolloutState.ABORTED and kept.state is RingState.RUNNING
    return RingReport(
        name=kept.name,
        state="stopped" if stopped else kept.state.value,
        started=when(kept.started),
        finished=when(kept.finished),
        committed=counts.committed,
        failed=counts.failed,
        rejected=counts.rejected,
        unfit=counts.unfit,
        active=counts.active,
        missing=counts.missing,
        members=[_member(member) for member in view.members],
    )


def _member(member: SpokeView) -> RingMemberView:
    return RingMemberView(
        spoke=str(member.spoke),
        online=member.online,
        assigned=when(member.assigned),
        state=member.state.value if member.state else None,
        reason=member.reason.value,
        serving=member.serving,
        cpu_class=member.cpu_class,
        evidence=member.evidence,
    )

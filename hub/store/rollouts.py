"""Rollouts and their rings."""

from dataclasses import dataclass

from sqlalchemy import Connection, Row, insert, select, update

from hub.rules.rollout import RingState, RolloutState
from hub.rules.rollout_plan import RolloutPlan
from hub.store.tables import approvals, rings, rollouts
from hub.store.upsert import put

__all__ = [
    "KeptRing",
    "KeptRollout",
    "add_approval",
    "add_rollout",
    "approvers_of",
    "find_rollout",
    "list_rollouts",
    "open_rollouts",
    "settled_rollouts",
    "set_ring",
    "set_rollout",
]


@dataclass(frozen=True, slots=True)
class KeptRing:
    """Where a ring is, since when."""

    name: str
    state: RingState
    started: float | None
    ready: float | None
    finished: float | None


@dataclass(frozen=True, slots=True)
class KeptRollout:
    """A plan and where it is. `reason`: what it waits for, or why it ended."""

    plan: RolloutPlan
    index: str
    author: str
    state: RolloutState
    reason: str
    created: float
    changed: float
    rings: tuple[KeptRing, ...]


def add_rollout(connection: Connection, plan: RolloutPlan, index: str, author: str, state: RolloutState, *, now: float) -> None:
    """Keep a new plan, all rings waiting."""
    values = {
        "name": plan.name,
        "model": plan.spec.ref.name,
        "version": plan.spec.ref.version,
        "index_digest": index,
        "document": plan.canonical(),
        "author": author,
        "state": state.value,
        "reason": "",
        "created": now,
        "changed": now,
    }
    connection.execute(insert(rollouts).values(**values))
    for position, ring in enumerate(plan.spec.rings):
        waiting = {"rollout": plan.name, "position": position, "name": ring.name, "state": RingState.WAITING.value}
        connection.execute(insert(rings).values(**waiting))


def find_rollout(connection: Connection, name: str) -> KeptRollout | None:
    """One rollout."""
    row = connection.execute(select(rollouts).where(rollouts.c.name == name)).one_or_none()
    return _rollout(connection, row) if row else None


def list_rollouts(connection: Connection) -> list[KeptRollout]:
    """All, newest first."""
    return [_rollout(connection, row) for row in connection.execute(select(rollouts).order_by(rollouts.c.created.desc())).all()]


def open_rollouts(connection: Connection, model: str | None = None) -> list[KeptRollout]:
    """Those not ended (of one model), oldest first."""
    ended = (RolloutState.COMPLETED.value, RolloutState.ABORTED.value)
    query = select(rollouts).where(rollouts.c.state.not_in(ended)).order_by(rollouts.c.created)
    query = query if model is None else query.where(rollouts.c.model == model)
    return [_rollout(connection, row) for row in connection.execute(query).all()]


def settled_rollouts(connection: Connection) -> list[KeptRollout]:
    """Of each model, the newest that was completed: what its sites should have."""
    query = select(rollouts).where(rollouts.c.state == RolloutState.COMPLETED.value).order_by(rollouts.c.created)
    newest = {row.model: row for row in connection.execute(query)}
    return [_rollout(connection, row) for row in newest.values()]


def set_rollout(connection: Connection, name: str, state: RolloutState, reason: str, *, now: float) -> None:
    """Move a rollout, or say what it waits for."""
    connection.execute(update(rollouts).where(rollouts.c.name == name).values(state=state.value, reason=reason, changed=now))


def set_ring(connection: Connection, rollout: str, position: int, **values: object) -> None:
    """Change `state`, `started`, `ready` or `finished` of a ring."""
    connection.execute(update(rings).where(rings.c.rollout == rollout, rings.c.position == position).values(**values))


def add_approval(connection: Connection, rollout: str, who: str, *, now: float) -> None:
    """Somebody says yes."""
    put(connection, approvals, {"rollout": rollout, "who": who}, {"time": now})


def approvers_of(connection: Connection, rollout: str) -> frozenset[str]:
    """Who has said yes."""
    return frozenset(connection.execute(select(approvals.c.who).where(approvals.c.rollout == rollout)).scalars())


def _rollout(connection: Connection, row: Row[tuple[object, ...]]) -> KeptRollout:
    query = select(rings).where(rings.c.rollout == row.name).order_by(rings.c.position)
    kept = tuple(KeptRing(r.name, RingState(r.state), r.started, r.ready, r.finished) for r in connection.execute(query))
    plan = RolloutPlan.parse(bytes(row.document))
    return KeptRollout(plan, row.index_digest, row.author, RolloutState(row.state), row.reason, row.created, row.changed, kept)

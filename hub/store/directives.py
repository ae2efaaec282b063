"""What each spoke should serve (assignments), and the signed directives made from it."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, select, update

from hub.store.tables import assignments, directives, spokes
from hub.store.upsert import put
from model_formats.core.types import ModelRef
from sync.core.types import SpokeId
from sync.protocol.messages import DesiredModel

__all__ = [
    "Assignment",
    "SealedDirective",
    "assign",
    "assignments_of",
    "due_directives",
    "find_assignment",
    "find_directive",
    "lift_generations",
    "put_directive",
    "retained_directives",
    "rollout_assignments",
    "unassign",
]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One model at one spoke: what it should be, and what it was before."""

    spoke: SpokeId
    ref: ModelRef
    index: str
    rollout: str | None
    ring: int | None
    terms: DesiredModel
    assigned: float
    generation: int
    """Of the first directive that says so: a report under an older one is about an earlier try."""
    good: tuple[int, str] | None
    """Version and index to go back to; None: there was none."""


@dataclass(frozen=True, slots=True)
class SealedDirective:
    """The newest directive of a spoke. `content` is the digest of all but generation and times."""

    spoke: SpokeId
    generation: int
    content: str
    issued: float
    expires: float
    envelope: bytes


def assign(connection: Connection, assignment: Assignment) -> None:
    """Set what a spoke should serve of one model."""
    values = {
        "version": assignment.ref.version,
        "index_digest": assignment.index,
        "rollout": assignment.rollout,
        "ring": assignment.ring,
        "terms": assignment.terms.json,
        "assigned": assignment.assigned,
        "generation": assignment.generation,
        "good_version": assignment.good[0] if assignment.good else None,
        "good_index": assignment.good[1] if assignment.good else None,
    }
    key = {"site": assignment.spoke.site, "spoke": assignment.spoke.spoke, "model": assignment.ref.name}
    put(connection, assignments, key, values)


def unassign(connection: Connection, spoke: SpokeId, model: str) -> None:
    """The model is to be retired there."""
    connection.execute(delete(assignments).where(_is(assignments.c, spoke), assignments.c.model == model))


def find_assignment(connection: Connection, spoke: SpokeId, model: str) -> Assignment | None:
    """What one spoke should serve of one model."""
    query = select(assignments).where(_is(assignments.c, spoke), assignments.c.model == model)
    row = connection.execute(query).one_or_none()
    return _assignment(row) if row else None


def assignments_of(connection: Connection, spoke: SpokeId) -> list[Assignment]:
    """All models of one spoke, by name."""
    query = select(assignments).where(_is(assignments.c, spoke)).order_by(assignments.c.model)
    return [_assignment(row) for row in connection.execute(query)]


def rollout_assignments(connection: Connection, rollout: str) -> list[Assignment]:
    """All spokes that a rollout has reached."""
    query = select(assignments).where(assignments.c.rollout == rollout).order_by(assignments.c.site, assignments.c.spoke)
    return [_assignment(row) for row in connection.execute(query)]


def put_directive(connection: Connection, sealed: SealedDirective) -> None:
    """Keep the newest directive."""
    values = {
        "generation": sealed.generation,
        "content": sealed.content,
        "issued": sealed.issued,
        "expires": sealed.expires,
        "envelope": sealed.envelope,
    }
    put(connection, directives, {"site": sealed.spoke.site, "spoke": sealed.spoke.spoke}, values)


def find_directive(connection: Connection, spoke: SpokeId) -> SealedDirective | None:
    """The newest directive."""
    row = connection.execute(select(directives).where(_is(directives.c, spoke))).one_or_none()
    return _directive(row) if row else None


def retained_directives(connection: Connection) -> list[tuple[SpokeId, bytes]]:
    """What stands (or should stand) at the broker for every spoke; empty for revoked ones."""
    joined = directives.join(spokes, (directives.c.site == spokes.c.site) & (directives.c.spoke == spokes.c.spoke))
    query = select(directives.c.site, directives.c.spoke, directives.c.envelope, spokes.c.revoked).select_from(joined)
    return [(SpokeId(r.site, r.spoke), bytes(r.envelope) if r.revoked is None else b"") for r in connection.execute(query)]


def lift_generations(connection: Connection, by: int) -> None:
    """Count on from higher numbers; every directive has to be sealed anew after that."""
    connection.execute(update(directives).values(generation=directives.c.generation + by, content="", issued=0, expires=0))


def due_directives(connection: Connection, *, before: float) -> list[SpokeId]:
    """Spokes whose directive was issued before a time, and so is to be signed anew."""
    query = select(directives.c.site, directives.c.spoke).where(directives.c.issued < before)
    return [SpokeId(row.site, row.spoke) for row in connection.execute(query)]


def _is(columns: object, spoke: SpokeId) -> ColumnElement[bool]:
    return and_(columns.site == spoke.site, columns.spoke == spoke.spoke)  # type: ignore[attr-defined]


def _assignment(row: Row[tuple[object, ...]]) -> Assignment:
    return Assignment(
        spoke=SpokeId(row.site, row.spoke),
        ref=ModelRef(row.model, row.version),
        index=row.index_digest,
        rollout=row.rollout,
        ring=row.ring,
        terms=DesiredModel.of_json(row.terms),
        assigned=row.assigned,
        generation=row.generation,
        good=None if row.good_version is None else (row.good_version, row.good_index),
    )


def _directive(row: Row[tuple[object, ...]]) -> SealedDirective:
    return SealedDirective(
        SpokeId(row.site, row.spoke), row.generation, row.content, row.issued, row.expires, bytes(row.envelope)
    )

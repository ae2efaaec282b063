"""Federated questions and what became of them."""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, Row, insert, select, update

from hub.store.tables import questions
from sync.federated.documents import Question

__all__ = ["KeptQuestion", "QuestionState", "add_question", "find_question", "list_questions", "set_question"]


class QuestionState(StrEnum):
    """Where a question is."""

    GATHERING = "gathering"
    """Sites give their one-time keys."""
    SUMMING = "summing"
    """The cohort is fixed; its shares come in."""
    ANSWERED = "answered"
    TOO_FEW = "too_few"
    """Fewer sites than are needed gave a key."""
    INCOMPLETE = "incomplete"
    """A share is missing, so the sum was not opened and never will be."""


OPEN = (QuestionState.GATHERING, QuestionState.SUMMING)


@dataclass(frozen=True, slots=True)
class KeptQuestion:
    """One question. Times are UTC seconds; envelopes are as the broker holds them."""

    question: Question
    state: QuestionState
    author: str
    created: float
    changed: float
    envelope: bytes
    cohort: bytes | None
    result: bytes | None


def add_question(connection: Connection, question: Question, envelope: bytes, author: str, *, now: float) -> None:
    """Keep a new one, gathering."""
    values = {
        "name": question.name,
        "zone": question.zone,
        "model": question.model,
        "state": QuestionState.GATHERING.value,
        "author": author,
        "created": now,
        "changed": now,
        "document": question.canonical(),
        "envelope": envelope,
    }
    connection.execute(insert(questions).values(**values))


def set_question(
    connection: Connection,
    name: str,
    state: QuestionState,
    *,
    now: float,
    cohort: bytes | None = None,
    result: bytes | None = None,
) -> None:
    """Move one on, with its cohort or its result where there is a new one."""
    more = {key: value for key, value in (("cohort", cohort), ("result", result)) if value is not None}
    connection.execute(update(questions).where(questions.c.name == name).values(state=state.value, changed=now, **more))


def find_question(connection: Connection, name: str) -> KeptQuestion | None:
    """One by name."""
    row = connection.execute(select(questions).where(questions.c.name == name)).one_or_none()
    return _kept(row) if row else None


def list_questions(connection: Connection, *, open_only: bool = False, since: float = 0.0) -> list[KeptQuestion]:
    """Newest first; `since`: changed at that time or later."""
    query = select(questions).where(questions.c.changed >= since).order_by(questions.c.created.desc(), questions.c.name)
    query = query.where(questions.c.state.in_([s.value for s in OPEN])) if open_only else query
    return [_kept(row) for row in connection.execute(query)]


def _kept(row: Row[tuple[object, ...]]) -> KeptQuestion:
    return KeptQuestion(
        question=Question.parse(bytes(row.document)),
        state=QuestionState(row.state),
        author=row.author,
        created=row.created,
        changed=row.changed,
        envelope=bytes(row.envelope),
        cohort=None if row.cohort is None else bytes(row.cohort),
        result=None if row.result is None else bytes(row.result),
    )

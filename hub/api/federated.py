"""`/federated`: questions to all sites of a zone, of which this hub learns the sum alone."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from hub.api.access import HubPart, needs
from hub.api.spokes import when
from hub.api.values import AS_IT_IS
from hub.client.http import NotFound
from hub.rules.access import Permission, Principal
from hub.services.federated import FederatedResult, Terms, ask, members_of
from hub.store.federated_questions import KeptQuestion, find_question, list_questions
from model_formats.core.types import ModelRef
from model_formats.statistics.federated_sums import Statistic

__all__ = ["QuestionView", "router"]

router = APIRouter(prefix="/federated", tags=["federated"])
Reader = Annotated[Principal, Depends(needs(Permission.READ))]
Asker = Annotated[Principal, Depends(needs(Permission.STEER))]


class QuestionBody(BaseModel):
    """What is asked. `start` and `end` are taken down to full quarters of an hour."""

    model_config = ConfigDict(extra="forbid")

    model: str
    statistic: Statistic
    zone: str
    start: datetime
    end: datetime
    features: list[str] = []
    epsilon: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    min_sites: Annotated[int, Field(ge=10, le=256)] = 10
    gather_s: Annotated[float, Field(ge=1, le=30 * 86400)] = 3600.0
    answer_s: Annotated[float, Field(ge=1, le=30 * 86400)] = 86400.0
    name: str | None = None


class CohortMemberView(BaseModel):
    """One site of a cohort. `device_key` is what another site may list among its `peers`."""

    spoke: str
    device_key: str


class QuestionView(BaseModel):
    """A question, where it is, and what the opened sum says."""

    name: str
    model: str
    statistic: Statistic
    zone: str
    features: list[int]
    start: datetime
    end: datetime
    epsilon: float
    min_sites: int
    state: str
    author: str
    created: datetime | None
    closes: datetime
    expires: datetime
    members: list[CohortMemberView]
    result: Annotated[FederatedResult, AS_IT_IS] | None


@router.post("")
def put(body: QuestionBody, hub: HubPart, who: Asker) -> QuestionView:
    """Ask. Sites answer if their own policy lists `masked_sum`; nothing is learned of fewer than ten."""
    terms = Terms(
        ref=ModelRef.parse(body.model),
        statistic=body.statistic,
        zone=body.zone,
        start=body.start,
        end=body.end,
        epsilon=body.epsilon,
        features=tuple(body.features),
        min_sites=body.min_sites,
        gather_s=body.gather_s,
        answer_s=body.answer_s,
        name=body.name,
    )
    return _view(ask(hub, terms, who.name))


@router.get("")
def questions(hub: HubPart, _who: Reader) -> list[QuestionView]:
    """All questions, newest first."""
    with hub.database.read() as db:
        return [_view(kept) for kept in list_questions(db)]


@router.get("/{name}")
def question(name: str, hub: HubPart, _who: Reader) -> QuestionView:
    """One question."""
    with hub.database.read() as db:
        kept = find_question(db, name)
    if kept is None:
        raise NotFound(f"no question {name}")
    return _view(kept)


def _view(kept: KeptQuestion) -> QuestionView:
    asked = kept.question
    return QuestionView(
        name=asked.name,
        model=f"{asked.model}@{asked.version}",
        statistic=asked.statistic,
        zone=asked.zone,
        features=list(asked.features),
        start=asked.start,
        end=asked.end,
        epsilon=asked.epsilon_milli / 1000,
        min_sites=asked.min_sites,
        state=kept.state.value,
        author=kept.author,
        created=when(kept.created),
        closes=asked.closes,
        expires=asked.expires,
        members=[CohortMemberView(**member) for member in members_of(kept)],
        result=FederatedResult.parse(kept.result) if kept.result else None,
    )

"""Answers the hub's federated questions, if the site's policy, the hub's ceiling and the regime all allow it. Start reading here.

    question   verify (1-3) -> rows, columns, policy, ledger? -> keep a one-time secret -> `masked_key` through the outbox
    cohort     verify (4-8) -> sums over the rows -> noise -> masks -> forget the secret -> `masked_sum` through the outbox

The numbers are those of `sync.federated.verify`. Every no is in the egress log; a question that was refused stays refused. Rows
that were counted in one answer are never counted in another, whatever is asked and whoever else answers: two cohorts that differ
by one site would otherwise tell that site's numbers by subtraction.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model_formats.core.errors import RefusedError
from model_formats.core.log_event import LogEvent
from model_formats.core.types import digest_of
from model_formats.package import Package
from model_formats.statistics.federated_sums import SumLayout, SumsInvalid, add_up, lay_out
from model_formats.statistics.reference_profile import columns
from spoke_agent.data.store import DataStore
from spoke_agent.federated.rounds import Round, Rounds
from spoke_agent.outbox.floors import discrete_laplace
from spoke_agent.outbox.outbox import About, Asking, Outbox
from spoke_agent.outbox.policy import EgressRule
from sync.core.types import SpokeId
from sync.federated.documents import Question
from sync.federated.masks import masked, public_of
from sync.federated.verify import CohortRefused, CohortTooSmall, Peers, QuestionRefused, verify_cohort, verify_question
from sync.protocol.egress import MaskedKey, MaskedSum
from sync.trust.errors import EnvelopeRefused
from sync.trust.trusted_release import Released

__all__ = ["Noise", "Respondent", "ZoneMember"]

log = logging.getLogger(__name__)

_MOST_HEARD = 64
Noise = Callable[[float], int]
"""Discrete Laplace noise of an epsilon."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that a question is about, added up, and how many they are."""

    sums: list[int]
    layout: SumLayout
    rows: int


@dataclass(frozen=True, slots=True)
class ZoneMember:
    """Who this spoke is among the sites of its zone."""

    me: SpokeId
    zone: str
    ca: Callable[[], bytes]
    """The device CA of enrolment (PEM)."""


class Respondent:
    """One site's part. `hear` may be called from the loop at any time; `tick` does the work. Not thread-safe."""

    def __init__(
        self,
        member: ZoneMember,
        rounds: Rounds,
        *,
        outbox: Outbox,
        data: DataStore,
        released: Callable[[], Released],
        package: Callable[[str], Package | None],
        noise: Noise = discrete_laplace,
    ) -> None:
        """`package` gives what this spoke serves under an index digest; `released` the director's keys and trusted time."""
        self._rounds, self._me, self._zone, self._ca = rounds, member.me, member.zone, member.ca
        self._outbox, self._data, self._noise = outbox, data, noise
        self._released, self._package = released, package
        self._questions: dict[str, bytes] = {}
        self._cohorts: dict[str, bytes] = {}
        self._settled: set[str] = set()
        self._doubted: set[str] = set()

    def hear(self, topic: str, payload: bytes) -> None:
        """Take a message of the zone's `question` or `cohort` topics; an empty one takes the last back."""
        heard = self._cohorts if topic.split("/")[-2] == "cohort" else self._questions
        name = topic.rpartition("/")[2]
        old = heard.pop(name, None)
        if old is not None and old != payload:
            self._settled.discard(digest_of(old))
            self._doubted.discard(digest_of(old))
        if payload and len(heard) < _MOST_HEARD:
            heard[name] = payload

    def tick(self) -> None:
        """Look at everything that was heard; cheap when there is nothing new."""
        if self._questions or self._cohorts:
            self._rounds.forget_expired(self._released().now)
        for data in list(self._questions.values()):
            self._once(data, self._consider)
        for data in list(self._cohorts.values()):
            self._once(data, self._meet)

    def _once(self, data: bytes, look: Callable[[bytes], bool]) -> None:
        """Whatever is not the hub's word, or not for here, is passed over, and told in the log once."""
        digest = digest_of(data)
        if digest in self._settled:
            return
        try:
            settled = look(data)
        except RefusedError as e:
            settled = not isinstance(e, EnvelopeRefused)  # the director's new key may be on its way
            if settled or digest not in self._doubted:
                log.warning(LogEvent.FEDERATED_REFUSED, extra={"code": e.code, "error": e.message})
            self._doubted.add(digest)
        if settled:
            self._settled.add(digest)

    # ---- a question

    def _consider(self, data: bytes) -> bool:
        """Join, or not; False: ask me again later (this spoke does not serve that version yet)."""
        question = verify_question(data, self._released(), self._zone)
        if self._rounds.known(question.digest):
            return True
        package = self._package(question.index)
        if package is None:
            return False
        rows = self._rows(question, package)
        public = self._rounds.join(question)
        asking = Asking(_epsilon(question), features=_names(rows.layout))
        body = MaskedKey(question=question.digest, key=tuple(public))
        if not self._outbox.offer_masked(body, _about(question, rows.rows), asking):
            self._rounds.done(question)
        return True

    # ---- a cohort

    def _meet(self, data: bytes) -> bool:
        """Answer if this is the cohort of a question that this site joined."""
        for found in self._rounds.joined():
            if (secret := self._rounds.secret(found)) is None:
                self._rounds.done(found.question)
            elif (peers := self._peers(data, found, secret)) is not None:
                self._answer(found.question, secret, peers)
                return True
        return False

    def _peers(self, data: bytes, found: Round, secret: bytes) -> Peers | None:
        """The cohort, verified; None where it is another question's. One that cannot be trusted ends the round."""
        question = found.question
        try:
            return verify_cohort(data, self._released(), question, self._me, public_of(secret), self._ca())
        except CohortRefused as e:
            self._rounds.done(question)
            why = EgressRule.COHORT_TOO_SMALL if isinstance(e, CohortTooSmall) else EgressRule.COHORT_NOT_CERTIFIED
            self._outbox.refuse("masked_sum", _about(question, 0), why)
            raise
        except RefusedError:
            return None

    def _answer(self, question: Question, secret: bytes, peers: Peers) -> None:
        package = self._package(question.index)
        self._rounds.done(question)
        if package is None:
            return
        rows = self._rows(question, package)
        shares = rows.layout.shares(_epsilon(question))
        noisy = [value + self._noise(share) for value, share in zip(rows.sums, shares, strict=True)]
        others = {spoke: key for spoke, key in peers.keys.items() if spoke != self._me}
        body = MaskedSum(
            question=question.digest,
            cohort=peers.cohort,
            sites=len(peers.keys),
            values=masked(noisy, self._me, secret, others, peers.cohort),
        )
        asking = Asking(_epsilon(question), features=_names(rows.layout), peers=peers.fingerprints)
        self._outbox.offer_masked(body, _about(question, rows.rows), asking)

    # ---- rows

    def _rows(self, question: Question, package: Package) -> _Rows:
        """Add the rows up. Raises QuestionRefused where package and question do not fit."""
        profile, spec = package.profile, package.spec
        if (spec.model, spec.version, profile.edges_digest) != (question.model, question.version, question.edges):
            raise QuestionRefused(f"question {question.name} speaks of another package than {question.index}")
        if spec.residency.learning == "none":
            raise QuestionRefused(f"question {question.name}: nothing may be learned with {spec.model}@{spec.version}")
        try:
            layout = lay_out(package.contract, profile, question.statistic, question.features)
        except SumsInvalid as e:
            raise QuestionRefused(f"question {question.name}: {e.message}") from e
        sums, rows = [0] * len(layout.bounds), 0
        for batch in self._data.batches(question.model, index=question.index, since=question.start, purpose="serving"):
            inside = (batch.times >= question.start.timestamp()) & (batch.times < question.end.timestamp())
            if inside.any():
                chosen = batch.where(inside)
                table = columns(profile, chosen.inputs, chosen.outputs)
                sums = [a + b for a, b in zip(sums, add_up(layout, profile, table, chosen.labels), strict=True)]
                rows += int((~np.isnan(chosen.labels)).sum()) if question.statistic == "label_counts" else chosen.rows
        return _Rows(sums, layout, rows)


def _about(question: Question, rows: int) -> About:
    return About(question.model, question.version, question.index, question.start, question.end, rows)


def _names(layout: SumLayout) -> frozenset[str]:
    return frozenset(part.name for part in layout.parts if part.position is not None)


def _epsilon(question: Question) -> float:
    return question.epsilon_milli / 1000

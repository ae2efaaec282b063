"""Federated sums at the hub: ask, gather one-time keys, fix the cohort, add up the shares, and open the sum if it is whole.

    gathering ──(keys of enough sites at `closes`)──▶ summing ──(every share is here)──▶ answered
        └─────────▶ too_few                              └──(`expires`)──▶ incomplete: never opened

All state is in the database and every step is one transaction, so a restart loses nothing. This process sees shares only; a
share is uniformly random. What a site's record must fulfil is checked in `hub.rules.egress_residency`, as for every record.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

from sqlalchemy import Connection

from hub.context import HubContext
from hub.rules.audit_action import AuditAction
from hub.services.directives import refresh_directive
from hub.services.package_index import profile_of
from hub.store.audit import append_audit
from hub.store.egress import KeptEgress, list_egress, spokes_that_said
from hub.store.federated_questions import KeptQuestion, QuestionState, add_question, find_question, list_questions, set_question
from hub.store.spokes import find_spoke, list_spokes
from hub.store.versions import find_version
from model_formats.core.document import Document, DocumentRefused
from model_formats.core.errors import OperatorError
from model_formats.core.types import ModelRef
from model_formats.package.read import open_package
from model_formats.statistics.federated_sums import PartTotals, Statistic, SumLayout, lay_out, read_totals
from sync.core.types import SpokeId
from sync.federated.documents import Cohort, Member, Question
from sync.federated.masks import total
from sync.protocol.egress import FLOORS, MAX_SITES, MIN_CELL, EgressRecord, MaskedKey, MaskedSum, coarse_start
from sync.trust.dsse import seal
from sync.trust.keys import fingerprint

__all__ = ["FederatedResult", "QuestionInvalid", "Terms", "ask", "members_of", "tick"]


class QuestionInvalid(OperatorError):
    """A federated question that cannot be asked as it stands."""

    code = "question_invalid"
    http = 422
    hint = "`hub federated ask --help` lists the statistics; the hub's setting `federated` allows them at all."


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator asks for. `features`: ids of the reference profile, none is all inputs; times in seconds."""

    ref: ModelRef
    statistic: Statistic
    zone: str
    start: datetime
    end: datetime
    epsilon: float = 1.0
    features: tuple[str, ...] = ()
    min_sites: int = 10
    gather_s: float = 3600.0
    answer_s: float = 86400.0
    name: str | None = None


class FederatedResult(Document):
    """What an opened sum says. Noise of every site is in it; counts under ten are not shown."""

    max_bytes: ClassVar[int] = 4 << 20

    kind: Literal["federated-result"] = "federated-result"
    schema_: Literal[1] = 1
    sites: int
    epsilon_milli: int
    parts: tuple[PartTotals, ...]


def ask(hub: HubContext, terms: Terms, who: str) -> KeptQuestion:
    """Put a question to a zone. Raises QuestionInvalid, SumsInvalid."""
    if not hub.settings.federated:
        raise QuestionInvalid("this hub does not ask for federated sums (setting `federated`)")
    with hub.database.begin() as db:
        question = _question(hub, db, terms)
        if find_question(db, question.name) is not None:
            raise QuestionInvalid(f"a question {question.name} exists", hint="Give the new one another --name.")
        add_question(db, question, seal(question, hub.repository.director), who, now=hub.now)
        details = {"model": str(terms.ref), "statistic": question.statistic, "zone": question.zone}
        append_audit(db, who, AuditAction.FEDERATED_ASK, question.name, now=hub.now, details=details)
        _renew_ceilings(hub, db, question.zone)
        kept = _find(db, question.name)
    hub.wake.set()
    return kept


def tick(hub: HubContext) -> None:
    """Move every open question on that can move."""
    with hub.database.begin() as db:
        for kept in list_questions(db, open_only=True):
            if kept.state is QuestionState.GATHERING:
                _close_gathering(hub, db, kept)
            else:
                _try_to_open(hub, db, kept)


def members_of(kept: KeptQuestion) -> list[dict[str, str]]:
    """Who is in the cohort: spoke, and digest of its device key (what a site's `peers` may list)."""
    if kept.cohort is None:
        return []
    cohort = _cohort(kept.cohort)
    return [{"spoke": str(_giver(member)), "device_key": fingerprint(member.certificate.encode())} for member in cohort.members]


# ---- asking ---------------------------------------------------------------------------------------------------------------


def _question(hub: HubContext, db: Connection, terms: Terms) -> Question:
    if terms.zone not in hub.settings.zones:
        raise QuestionInvalid(f"{terms.zone} is not a zone of this hub")
    version = find_version(db, terms.ref)
    profile = profile_of(hub, version.index) if version else None
    if version is None or profile is None:
        raise QuestionInvalid(f"{terms.ref} is not released here, or has no reference profile")
    unknown = sorted(set(terms.features) - {f.id for f in profile.features})
    if unknown:
        raise QuestionInvalid(f"{terms.ref} has no column {unknown[0]}")
    now = hub.clock.now().astimezone(UTC).replace(microsecond=0)
    try:
        question = Question(
            name=terms.name or f"{terms.ref.name}-{terms.statistic.replace('_', '-')}-{now:%y%m%d%H%M%S}",
            zone=terms.zone,
            model=terms.ref.name,
            version=terms.ref.version,
            index=version.index,
            edges=profile.edges_digest,
            statistic=terms.statistic,
            features=tuple(i for i, f in enumerate(profile.features) if f.id in terms.features),
            start=coarse_start(terms.start),
            end=coarse_start(terms.end),
            epsilon_milli=round(terms.epsilon * 1000),
            min_sites=terms.min_sites,
            issued=now,
            closes=now + timedelta(seconds=int(terms.gather_s)),
            expires=now + timedelta(seconds=int(terms.gather_s + terms.answer_s)),
        ).checked()
    except DocumentRefused as e:
        raise QuestionInvalid(e.problem) from e
    except ValueError as e:
        raise QuestionInvalid(str(e)) from e
    _layout(hub, question)
    return question


def _renew_ceilings(hub: HubContext, db: Connection, zone: str) -> None:
    """Directives signed before `federated` was set still say that the hub does not want it."""
    for spoke in list_spokes(db):
        if spoke.zone == zone:
            life = hub.settings.directive_ttl_s
            refresh_directive(db, hub.repository.director, spoke.id, now=hub.now, life_s=life, ceiling=hub.ceiling)


# ---- gathering and opening --------------------------------------------------------------------------------------------------


def _close_gathering(hub: HubContext, db: Connection, kept: KeptQuestion) -> None:
    question = kept.question
    if hub.now < question.closes.timestamp():
        return
    members = _members(db, kept)
    if len(members) < question.min_sites:
        _end(hub, db, kept, QuestionState.TOO_FEW, {"sites": str(len(members)), "needed": str(question.min_sites)})
        return
    issued = hub.clock.now().astimezone(UTC).replace(microsecond=0)
    cohort = Cohort(name=question.name, question=question.digest, members=tuple(members.values()), issued=issued)
    sealed = seal(cohort, hub.repository.director)
    set_question(db, question.name, QuestionState.SUMMING, now=hub.now, cohort=sealed)
    append_audit(db, "hub", AuditAction.FEDERATED_COHORT, question.name, now=hub.now, details={"sites": str(len(members))})
    hub.wake.set()


def _members(db: Connection, kept: KeptQuestion) -> dict[str, Member]:
    """One spoke of each site, whoever gave a key first; revoked ones, other zones and forbidden regimes never."""
    found: dict[str, Member] = {}
    for key in sorted(_spoken(db, kept, "masked_key"), key=lambda k: k.received):
        body, spoke = key.record.body, find_spoke(db, SpokeId(key.record.site, key.record.spoke))
        if not isinstance(body, MaskedKey) or body.question != kept.question.digest or len(found) == MAX_SITES:
            continue
        if spoke is None or spoke.revoked is not None or spoke.zone != kept.question.zone:
            continue
        if "masked_sum" not in FLOORS[spoke.regime]:
            continue
        found.setdefault(spoke.id.site, Member(certificate=spoke.certificate, key=key.envelope.decode()))
    return found


def _try_to_open(hub: HubContext, db: Connection, kept: KeptQuestion) -> None:
    """Open the sum if every share of the cohort is here; give up for good when the time is over."""
    if kept.cohort is None:
        return
    cohort = _cohort(kept.cohort)
    wanted = {_giver(member) for member in cohort.members}
    if hub.now >= kept.question.expires.timestamp():
        _end(hub, db, kept, QuestionState.INCOMPLETE, {"sites": str(len(wanted))})
        return
    if spokes_that_said(db, "masked_sum", kept.question.model, since=kept.created) < len(wanted):
        return
    shares = dict(_shares(db, kept, cohort.digest))
    layout = _layout(hub, kept.question)
    if wanted - shares.keys() or any(len(shares[spoke]) != len(layout.bounds) for spoke in wanted):
        return
    epsilon = kept.question.epsilon_milli / 1000
    parts = read_totals(layout, total(shares[s] for s in wanted), sites=len(wanted), epsilon=epsilon, least=MIN_CELL)
    result = FederatedResult(sites=len(wanted), epsilon_milli=kept.question.epsilon_milli, parts=parts)
    set_question(db, kept.question.name, QuestionState.ANSWERED, now=hub.now, result=result.canonical())
    append_audit(db, "hub", AuditAction.FEDERATED_OPEN, kept.question.name, now=hub.now, details={"sites": str(len(wanted))})


def _shares(db: Connection, kept: KeptQuestion, cohort: str) -> Iterable[tuple[SpokeId, tuple[int, ...]]]:
    """The first share of each spoke for exactly this cohort."""
    for share in sorted(_spoken(db, kept, "masked_sum"), key=lambda k: -k.received):
        body = share.record.body
        if isinstance(body, MaskedSum) and (body.question, body.cohort) == (kept.question.digest, cohort):
            yield SpokeId(share.record.site, share.record.spoke), body.values


_ENDED = {
    QuestionState.TOO_FEW: AuditAction.FEDERATED_TOO_FEW,
    QuestionState.INCOMPLETE: AuditAction.FEDERATED_INCOMPLETE,
}


def _end(hub: HubContext, db: Connection, kept: KeptQuestion, state: QuestionState, details: dict[str, str]) -> None:
    set_question(db, kept.question.name, state, now=hub.now)
    append_audit(db, "hub", _ENDED[state], kept.question.name, now=hub.now, details=details)
    hub.wake.set()


def _spoken(db: Connection, kept: KeptQuestion, kind: str) -> list[KeptEgress]:
    """Believed records of a kind about the question's model, from the question on."""
    return list_egress(db, kind=kind, model=kept.question.model, since=kept.created, limit=100_000)


def _layout(hub: HubContext, question: Question) -> SumLayout:
    package = open_package(hub.registry, question.index)
    if package.spec.residency.learning == "none":
        raise QuestionInvalid(f"the residency label of {question.model}@{question.version} lets nothing be learned with it")
    return lay_out(package.contract, package.profile, question.statistic, question.features)


def _cohort(envelope: bytes) -> Cohort:
    """Our own word, as we kept it."""
    return Cohort.parse(_payload(envelope))


def _giver(member: Member) -> SpokeId:
    record = EgressRecord.parse(_payload(member.key.encode()))
    return SpokeId(record.site, record.spoke)


def _payload(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def _find(db: Connection, name: str) -> KeptQuestion:
    kept = find_question(db, name)
    if kept is None:
        raise QuestionInvalid(f"no question {name}")
    return kept

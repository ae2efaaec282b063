"""Sites that a device CA enrolled, the hub's director, and what they sign in a federated sum."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from provisioning.identity.ca import DeviceCA
from provisioning.identity.identity import device_csr
from sync.core.types import SpokeId
from sync.federated.documents import Cohort, Member, Question
from sync.federated.masks import fresh_secret, public_of
from sync.protocol.egress import EgressRecord, MaskedKey
from sync.trust.dsse import seal
from sync.trust.keys import Signer, device_signer, role_signer
from sync.trust.trusted_release import Released
from tests.samples.tabular import INDEX, MODEL, VERSION, profile

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
DIRECTOR = role_signer()
QUESTION = Question(
    name="ages",
    zone="eu",
    model=MODEL,
    version=VERSION,
    index=INDEX,
    edges=profile().edges_digest,
    statistic="label_counts",
    start=NOW - timedelta(days=1),
    end=NOW,
    epsilon_milli=1000,
    issued=NOW,
    closes=NOW + timedelta(hours=1),
    expires=NOW + timedelta(days=1),
)


@dataclass
class Site:
    """One site with a certificate, and the one-time secret of its answer."""

    spoke: SpokeId
    signer: Signer
    certificate: bytes
    secret: bytes

    def member(
        self,
        question: Question = QUESTION,
        *,
        key: bytes | None = None,
        signer: Signer | None = None,
        spoke: SpokeId | None = None,
    ) -> Member:
        """What this site says to a question, or what somebody else would say for it."""
        at, who = NOW.replace(minute=0), spoke or self.spoke
        record = EgressRecord(
            site=who.site,
            spoke=who.spoke,
            sequence=1,
            previous=None,
            policy=INDEX,
            model=MODEL,
            version=VERSION,
            index=INDEX,
            start=at,
            end=at,
            body=MaskedKey(question=question.digest, key=tuple(key or public_of(self.secret))),
        )
        return Member(certificate=self.certificate.decode(), key=seal(record, signer or self.signer).decode())


def site(ca: DeviceCA, name: str, **life: Any) -> Site:
    """Enrol one."""
    signer, spoke = device_signer(), SpokeId.parse(name)
    return Site(spoke, signer, ca.sign_csr(device_csr(signer), spoke, now=NOW, **life), fresh_secret())


def sealed_cohort(members: list[Member], question: Question = QUESTION, signer: Signer = DIRECTOR) -> bytes:
    """The hub's word on who answers."""
    return seal(Cohort(name=question.name, question=question.digest, members=tuple(members), issued=NOW), signer)


def released(now: datetime = NOW, expired: tuple[str, ...] = (), director: Signer = DIRECTOR) -> Released:
    """What a site trusts: the director's key, and the time."""
    return Released({}, {}, {}, (director.public_key,), 1, frozenset(), "online", now, now, now, expired)

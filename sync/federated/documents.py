"""The hub's two messages in a federated sum: the question, and the cohort that answers it. The director signs both.

A site's two messages are in `sync.protocol.egress` (`masked_key`, `masked_sum`), since they leave through the outbox.
"""

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document, Value
from model_formats.core.types import AwareDatetime, Digest, Name
from model_formats.statistics.federated_sums import Statistic
from sync.protocol.egress import MAX_SITES, MIN_SITES, FeatureNumber, need_coarse

__all__ = ["LONGEST", "Cohort", "Member", "Question"]

LONGEST = timedelta(days=30)
"""Longest life of a question."""


class Question(Document):
    """One question to all sites of a zone, never free-form: a statistic of the closed list over a signed package's columns."""

    max_bytes: ClassVar[int] = 32 * 1024

    kind: Literal["federated-question"] = "federated-question"
    schema_: Literal[1] = 1
    name: Name
    zone: Name
    model: Name
    version: Annotated[int, Meta(ge=1)]
    index: Digest
    edges: Digest
    """Digest of the reference profile's edges, so that all sites lay their numbers out alike."""
    statistic: Statistic
    features: Annotated[tuple[FeatureNumber, ...], Meta(max_length=512)] = ()
    """Positions in the profile, rising; none is all inputs."""
    start: AwareDatetime
    end: AwareDatetime
    """The rows from `start` to before `end`, which lies in the past: no row is still to come."""
    epsilon_milli: Annotated[int, Meta(ge=10, le=10_000)]
    """What the answer costs every site's privacy ledger: each adds the whole noise of this epsilon before it masks."""
    min_sites: Annotated[int, Meta(ge=MIN_SITES, le=MAX_SITES)] = MIN_SITES
    issued: AwareDatetime
    closes: AwareDatetime
    """Keys are taken until then; then the cohort is fixed."""
    expires: AwareDatetime
    """Answers are taken until then. If one is missing by then, the sum is never opened."""

    def __post_init__(self) -> None:
        need_coarse(start=self.start, end=self.end)
        if not self.start < self.end <= self.issued < self.closes < self.expires <= self.issued + LONGEST:
            raise ValueError("needs start < end <= issued < closes < expires, and at most 30 days")


class Member(Value):
    """One site that gave a key: its certificate (PEM), and the signed record in which it did (DSSE, as it came)."""

    certificate: Annotated[str, Meta(max_length=4000)]
    key: Annotated[str, Meta(max_length=8000)]


class Cohort(Document):
    """Who answers a question together. Every site judges it for itself before it answers (`verify_cohort`)."""

    max_bytes: ClassVar[int] = 700_000

    kind: Literal["federated-cohort"] = "federated-cohort"
    schema_: Literal[1] = 1
    name: Name
    question: Digest
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MAX_SITES)]
    issued: AwareDatetime

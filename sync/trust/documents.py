"""The small documents that TUF targets consist of, and the terms that stand beside a released version.

Author and client both use these, so that both read them alike.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec import Meta
from tuf.api.metadata import Timestamp

from model_formats.core.document import Document, DocumentRefused, Value
from model_formats.core.types import NAME_PATTERN, AwareDatetime, Digest, Name, matching
from model_formats.signing.publisher_policy import PublisherPolicy
from sync.core.types import Regime
from sync.trust.keys import PublicKey

__all__ = [
    "DENY",
    "DIRECTOR",
    "DenyList",
    "DirectorKeys",
    "Freshness",
    "Lane",
    "ReleaseTerms",
    "SignatureRef",
    "file_of_target",
]

DIRECTOR = "keys/director.json"
"""TUF target path of the keys that may sign directives."""
DENY = "deny.json"
"""TUF target path of the deny list."""

Lane = Literal["online", "relay", "sideload"]
"""How metadata reached the spoke; it decides how old it may be."""


def file_of_target(path: str) -> str:
    """The file name (topic level, name in a bundle) of a small target: `keys/director.json` -> `keys.director.json`."""
    return path.replace("/", ".")


class DirectorKeys(Document):
    """`keys/director.json`: who may sign directives. A stolen director key is replaced by the targets role, without root."""

    max_bytes: ClassVar[int] = 64 * 1024

    kind: Literal["director-keys"] = "director-keys"
    schema_: Literal[1] = 1
    keys: tuple[PublicKey, ...]
    threshold: Annotated[int, Meta(ge=1)] = 1


class DenyList(Document):
    """`deny.json`: what may not run any more, whoever says so. It travels with every bundle."""

    max_bytes: ClassVar[int] = 1 << 20

    kind: Literal["deny-list"] = "deny-list"
    schema_: Literal[1] = 1
    digests: tuple[Digest, ...] = ()
    """Index digests of versions, digests of single files, or digests of a publisher's key or certificate (DER)."""


class SignatureRef(Value):
    """Where the publisher's signature (a Model Signing bundle) is, by digest."""

    digest: Digest
    length: Annotated[int, Meta(ge=1, le=1 << 20)]


class ReleaseTerms(Value):
    """`custom` of a version's target: who signed the package, where it may go, and what one may go back to from it."""

    signature: SignatureRef
    zones: tuple[Name, ...]
    """An empty list means nowhere."""
    regimes: tuple[Regime, ...] | None = None
    """None: the package's own residency label decides alone."""
    publishers: PublisherPolicy = PublisherPolicy()
    """Who may have built it; an empty policy trusts nobody."""
    fallback: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    """Lower versions that a spoke on this one may be sent back to: the signed downgrade grant."""

    @classmethod
    def of(cls, custom: object) -> Self:
        """Read the `custom` field of a target. Raises DocumentRefused."""
        try:
            return cls.of_plain(custom)
        except DocumentRefused as e:
            raise DocumentRefused(f"release terms: {e.message}") from e


class Freshness(Value):
    """What our timestamps say beside the TUF fields: when they were issued, for which lane, and (sideload) for which site."""

    issued: AwareDatetime
    lane: Lane = "online"
    site: Annotated[str, matching(NAME_PATTERN)] | None = None

    FIELD: ClassVar[str] = "x-spokeshave"

    @classmethod
    def of(cls, timestamp: Timestamp) -> Self:
        """Read it; a timestamp without it counts as online, issued at the beginning of time. Raises DocumentRefused."""
        fields = timestamp.unrecognized_fields.get(cls.FIELD)
        if fields is None:
            return cls(issued=datetime.fromtimestamp(0, UTC))
        try:
            return cls.of_plain(fields)
        except DocumentRefused as e:
            raise DocumentRefused(f"timestamp.json: {cls.FIELD}: {e.message}") from e

    def fields(self) -> dict[str, Any]:
        """As extra fields of a Timestamp; they are signed with it."""
        return {self.FIELD: self.sparse}

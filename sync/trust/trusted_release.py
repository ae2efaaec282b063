"""What a spoke may believe is released: the verified content of one trusted set of TUF metadata, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from model_formats.core.types import ModelRef
from sync.core.types import Reason
from sync.trust.documents import Lane
from sync.trust.errors import MetadataRefused, ReleaseRefused
from sync.trust.freshness import is_stale
from sync.trust.keys import Key

__all__ = ["Released", "Target"]

FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Target:
    """One released thing: digest and size in bytes, with the terms that stand beside it."""

    digest: str
    length: int
    custom: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """The trusted set at one moment. It may be expired: then it still tells what was true, but allows nothing new."""

    versions: Mapping[str, int]
    """Version of every role's metadata."""
    targets: Mapping[str, Target]
    """By TUF path; those of delegated roles only where the delegation covers them."""
    refused: Mapping[str, MetadataRefused]
    """Delegated roles that did not verify or are past their time; their targets may not be used, those of others may."""
    director_keys: tuple[Key, ...]
    director_threshold: int
    denied: frozenset[str]
    lane: Lane
    """How the timestamp came here."""
    issued: datetime
    """When the timestamp key last said that this set is current."""
    expires: datetime
    now: datetime
    """The trusted time at which all this was judged."""
    expired: tuple[str, ...] = ()
    """Top-level roles that are past their time; empty while all is well."""
    holds_until: datetime = FOREVER
    """Until then time alone changes nothing here: the next expiry of any role."""

    def at(self, now: datetime) -> "Released | None":
        """The same judgement at another time, or None where it has to be made anew."""
        return replace(self, now=now) if self.now <= now < self.holds_until else None

    def target(self, path: str) -> Target:
        """A target that may be used. Raises ReleaseRefused (not released), or why the role that releases it is not believed."""
        role = f"model-{path.split('/')[1]}" if path.startswith("models/") else ""
        if role in self.refused:
            raise self.refused[role]
        if path in self.targets:
            return self.targets[path]
        raise ReleaseRefused(Reason.NOT_RELEASED, f"{path} is not among the released targets")

    def version(self, ref: ModelRef) -> Target | None:
        """What is known of a model version, or None. To use it, ask for its `target`."""
        return self.targets.get(ref.target)

    @property
    def staleness(self) -> timedelta:
        """How long ago the hub last said that this is current."""
        return max(self.now - self.issued, timedelta(0))

    @property
    def stale(self) -> bool:
        """Whether news are overdue for this lane (nothing is refused for that; it is reported)."""
        return bool(self.expired) or is_stale(self.lane, self.issued, self.now)

"""The topic tree `ss/v1`, and who may use which part of it.

The only module that knows the grammar: hub and agent build topics here, and the broker's access list and the bus in memory
enforce the same rights. Names are DNS labels, digests are `sha256:<hex>`; nothing else can stand in a topic.
"""

import re
from dataclasses import dataclass
from typing import Literal

from model_formats.core.types import DIGEST_PATTERN, NAME_PATTERN
from sync.core.types import SpokeId

__all__ = [
    "PREFIX",
    "Right",
    "block",
    "blocks_of",
    "cohort",
    "desired",
    "egress",
    "hub_rights",
    "is_federated",
    "matches",
    "question",
    "receipt",
    "report",
    "spoke_of",
    "spoke_rights",
    "status",
    "time",
    "tuf",
    "unshared",
    "want",
]

PREFIX = "ss/v1"
_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(DIGEST_PATTERN)
_TUF_FILE = re.compile(r"^[a-z0-9.-]{1,100}\.json$")


def tuf(zone: str, file: str) -> str:
    """A TUF metadata file, retained: `ss/v1/zone/<zone>/tuf/<file>`. `+` for all."""
    return f"{PREFIX}/zone/{_name(zone)}/tuf/{_checked(file, _TUF_FILE)}"


def want(zone: str, digest: str) -> str:
    """Where a spoke asks for missing blocks; `+` for zone and digest on the hub."""
    return f"{PREFIX}/zone/{_name(zone)}/blob/{_checked(digest, _DIGEST)}/want"


def block(zone: str, digest: str, offset: int) -> str:
    """Raw bytes of a blob from `offset` on."""
    return f"{PREFIX}/zone/{_name(zone)}/blob/{_checked(digest, _DIGEST)}/{offset:d}"


def blocks_of(zone: str, digest: str) -> str:
    """The filter a spoke subscribes to while it stages one blob (it also matches `want`: it hears what others ask for)."""
    return f"{PREFIX}/zone/{_name(zone)}/blob/{_checked(digest, _DIGEST)}/+"


def question(zone: str, name: str) -> str:
    """A federated question to a zone (`sync.federated`), signed, retained while keys are taken; `+` for all."""
    return f"{PREFIX}/zone/{_name(zone)}/question/{_name(name)}"


def cohort(zone: str, name: str) -> str:
    """Who answers a federated question, signed, retained while answers are taken; `+` for all."""
    return f"{PREFIX}/zone/{_name(zone)}/cohort/{_name(name)}"


def is_federated(topic: str) -> bool:
    """Whether a topic is one of the two above."""
    return any(matches(f"{PREFIX}/zone/+/{part}/+", topic) for part in ("question", "cohort"))


def desired(spoke: SpokeId) -> str:
    """The signed directive of one spoke, retained."""
    return f"{_site(spoke)}/desired"


def status(spoke: SpokeId) -> str:
    """Liveness hint, retained, and last will."""
    return f"{_site(spoke)}/status"


def report(spoke: SpokeId) -> str:
    """Signed transitions."""
    return f"{_site(spoke)}/report"


def time(spoke: SpokeId) -> str:
    """The hub's signed answer to a spoke that asked for the time (`sync.trust.freshness`), not retained."""
    return f"{_site(spoke)}/time"


def receipt(spoke: SpokeId) -> str:
    """The hub's signed word on the newest record of the outbox that it has, retained."""
    return f"{_site(spoke)}/receipt"


def egress(spoke: SpokeId, kind: str) -> str:
    """The typed outbox; `kind` as in `sync.protocol.egress`."""
    return f"{_site(spoke)}/egress/{_checked(kind, re.compile('^[a-z_]{1,32}$'))}"


def spoke_of(topic: str) -> SpokeId:
    """The spoke whose branch a `site/...` topic is in; raises ValueError elsewhere."""
    parts = topic.split("/")
    if topic.startswith(f"{PREFIX}/site/") and len(parts) >= 6 and _NAME.match(parts[3]) and _NAME.match(parts[4]):
        return SpokeId(parts[3], parts[4])
    raise ValueError(f"not a site topic: {topic!r}")


@dataclass(frozen=True, slots=True)
class Right:
    """One line of an access list: may `read` (subscribe and receive) or `write` (publish) topics that match `pattern`."""

    access: Literal["read", "write"]
    pattern: str


def spoke_rights(spoke: SpokeId, zone: str) -> tuple[Right, ...]:
    """All that one spoke may do: read its zone and its own directive, write its own branch and its wants."""
    return (
        Right("read", tuf(zone, "+")),
        Right("read", f"{PREFIX}/zone/{_name(zone)}/blob/+/+"),
        Right("write", want(zone, "+")),
        Right("read", question(zone, "+")),
        Right("read", cohort(zone, "+")),
        Right("read", desired(spoke)),
        Right("read", time(spoke)),
        Right("read", receipt(spoke)),
        Right("write", status(spoke)),
        Right("write", report(spoke)),
        Right("write", egress(spoke, "+")),
    )


def hub_rights() -> tuple[Right, ...]:
    """The hub's own client: everything under the prefix."""
    return (Right("read", f"{PREFIX}/#"), Right("write", f"{PREFIX}/#"))


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT filter (`+`, `#`) matches a topic."""
    filters, levels = pattern.split("/"), topic.split("/")
    for i, part in enumerate(filters):
        if part == "#":
            return True
        if i >= len(levels) or part not in ("+", levels[i]):
            return False
    return len(filters) == len(levels)


def unshared(pattern: str) -> str:
    """The filter inside `$share/<group>/<filter>`; any other filter as it is."""
    return pattern.split("/", 2)[2] if pattern.startswith("$share/") else pattern


def _site(spoke: SpokeId) -> str:
    return f"{PREFIX}/site/{_name(spoke.site)}/{_name(spoke.spoke)}"


def _name(text: str) -> str:
    return _checked(text, _NAME)


def _checked(text: str, rule: re.Pattern[str]) -> str:
    if text != "+" and not rule.match(text):
        raise ValueError(f"{text!r} may not be part of a topic")
    return text

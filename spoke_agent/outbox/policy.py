"""Decides what may leave: the site's policy, the hub's ceiling and the regime's floor must all allow it.

`egress.yaml` in the spoke's home belongs to the site. No file is the default policy: operations and verdicts. A file that cannot
be read, or that contradicts itself, closes the outbox. The hub can tighten, never widen. Pure but for `load_policy`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from msgspec import Meta

from model_formats.core.document import Document, DocumentRefused, Value
from model_formats.core.files import atomic_write
from model_formats.core.types import Digest, Name
from spoke_agent.outbox.errors import PolicyInvalid
from sync.core.types import Regime
from sync.protocol.egress import FLOORS, MAX_BYTES, MIN_CELL, MIN_ROWS, MIN_SITES, Kind
from sync.protocol.messages import EgressCeiling

__all__ = [
    "POLICY_FILE",
    "Allow",
    "Day",
    "EgressRequest",
    "EgressRule",
    "SitePolicy",
    "Sovereignty",
    "decide",
    "default_policy",
    "load_policy",
    "may_tell_counts",
    "turn_switch",
]

POLICY_FILE = "egress.yaml"
Sovereignty = Literal["normal", "verdict_only", "sealed"]
_QUIET: frozenset[Kind] = frozenset({"ops", "drift_verdict"})


class Allow(Value):
    """One kind that may leave. What is not listed may not."""

    kind: Kind
    features: tuple[str, ...] | None = None
    """For histograms and masked sums: the ids (of the reference profile) that may be counted; none given is all inputs and
    predictions."""
    min_rows: Annotated[int, Meta(ge=0)] = 0
    """More than the kind's own floor; less has no effect."""
    interval_min_s: Annotated[int, Meta(ge=0)] = 0
    """At most one of a kind and model in this time (a verdict whose level changed may go at once)."""
    protect: tuple[Literal["suppress", "round", "dp"], ...] = ("suppress", "round")
    consent: Annotated[str, Meta(max_length=100)] | None = None
    """For `masked_sum`: the site's own reference to the consent or decision behind it. Required there, and never sent."""
    peers: Annotated[tuple[Digest, ...], Meta(min_length=MIN_SITES)] | None = None
    """For `masked_sum`: device keys (digests) that this site knows to be real; ten of a cohort, at least, must be among them."""

    def check(self) -> None:
        """Refuse what would have no effect, or two: whoever wrote it believes that it protects something. Raises ValueError."""
        if self.features == ():
            raise ValueError("features is empty: leave it out for all, or leave the kind out for none")
        if self.features and self.kind not in ("drift_hist", "masked_sum"):
            raise ValueError(f"features has no effect on {self.kind}, which speaks of all columns")
        if self.protect == () or ("dp" in self.protect and len(self.protect) > 1):
            raise ValueError("protect is either dp alone, or of suppress and round")
        if (self.consent or self.peers) and self.kind != "masked_sum":
            raise ValueError("consent and peers belong to masked_sum")
        if self.kind == "masked_sum" and not self.consent:
            raise ValueError("masked_sum needs a consent")


class SitePolicy(Document):
    """`egress.yaml`, checked."""

    max_bytes: ClassVar[int] = 256 * 1024

    kind: Literal["egress-policy"] = "egress-policy"
    schema_: Literal[1] = 1
    site: Name
    regime: Regime
    sovereignty: Sovereignty = "normal"
    min_cell: Annotated[int, Meta(ge=MIN_CELL, le=10_000)] = MIN_CELL
    round_to: Annotated[int, Meta(ge=1, le=100)] = 5
    max_bytes_per_day: Annotated[int, Meta(ge=0)] = 262_144
    epsilon_per_day: Annotated[float, Meta(gt=0, le=10)] = 1.0
    epsilon_per_30_days: Annotated[float, Meta(gt=0, le=100)] = 8.0
    allow: tuple[Allow, ...] = ()

    def __post_init__(self) -> None:
        kinds = [a.kind for a in self.allow]
        if len(set(kinds)) != len(kinds):
            raise ValueError("a kind is allowed twice")
        beyond = sorted(set(kinds) - FLOORS[self.regime])
        if beyond:
            raise ValueError(f"regime {self.regime} never lets {', '.join(beyond)} out")
        if self.epsilon_per_day > self.epsilon_per_30_days:
            raise ValueError("epsilon_per_day is more than epsilon_per_30_days")
        if "masked_key" in kinds:
            raise ValueError("masked_key goes with masked_sum: list that one")
        for rule in self.allow:
            rule.check()

    def rule(self, kind: Kind) -> Allow | None:
        """The rule of a kind, None where it may not leave."""
        wanted: Kind = "masked_sum" if kind == "masked_key" else kind
        return next((a for a in self.allow if a.kind == wanted), None)


class EgressRule(StrEnum):
    """Which rule decided: on the log, and what `spoke egress explain` puts into words."""

    ALLOWED = "allowed"
    POLICY_UNREADABLE = "policy_unreadable"
    SEALED = "sealed"
    VERDICT_ONLY = "verdict_only"
    NOT_IN_SITE_POLICY = "not_in_site_policy"
    NOT_IN_HUB_CEILING = "not_in_hub_ceiling"
    BELOW_REGIME_FLOOR = "below_regime_floor"
    TOO_FEW_ROWS = "too_few_rows"
    NOTHING_LEFT_TO_SAY = "nothing_left_to_say"
    TOO_SOON = "too_soon"
    TOO_LARGE = "too_large"
    DAY_FULL = "day_full"
    LEDGER_EXHAUSTED = "ledger_exhausted"
    WINDOW_OVERLAPS = "window_overlaps"
    NOT_SIGNED = "not_signed"
    FEATURE_NOT_ALLOWED = "feature_not_allowed"
    PEERS_UNKNOWN = "peers_unknown"
    COHORT_TOO_SMALL = "cohort_too_small"
    COHORT_NOT_CERTIFIED = "cohort_not_certified"


@dataclass(frozen=True, slots=True)
class EgressRequest:
    """What a body would need."""

    kind: Kind
    rows: int
    bytes: int
    epsilon: float = 0.0
    urgent: bool = False
    """A verdict whose level changed."""
    features: frozenset[str] = frozenset()
    """Ids of the columns that a masked sum speaks of."""
    peers: frozenset[str] | None = None
    """Device keys (digests) of the cohort that a masked sum is made for."""


@dataclass(frozen=True, slots=True)
class Day:
    """What has left already."""

    bytes: int = 0
    epsilon: float = 0.0
    epsilon_30_days: float = 0.0
    since_last_s: float | None = None
    """Of this kind and model."""


def decide(policy: SitePolicy, ceiling: EgressCeiling, regime: Regime, asked: EgressRequest, day: Day) -> EgressRule:
    """ALLOWED, or the first rule that says no. `regime` is the one of enrolment; its floor holds beside the policy's."""
    rule = policy.rule(asked.kind)
    noes: Sequence[tuple[bool, EgressRule]] = (
        (policy.sovereignty == "sealed", EgressRule.SEALED),
        (policy.sovereignty == "verdict_only" and asked.kind not in _QUIET, EgressRule.VERDICT_ONLY),
        (asked.kind not in FLOORS[regime] or asked.kind not in FLOORS[policy.regime], EgressRule.BELOW_REGIME_FLOOR),
        (rule is None, EgressRule.NOT_IN_SITE_POLICY),
        (asked.kind not in ceiling.kinds, EgressRule.NOT_IN_HUB_CEILING),
        (_beyond(rule, asked), EgressRule.FEATURE_NOT_ALLOWED),
        (_strangers(rule, asked), EgressRule.PEERS_UNKNOWN),
        (asked.rows < max(MIN_ROWS[asked.kind], rule.min_rows if rule else 0), EgressRule.TOO_FEW_ROWS),
        (asked.bytes > MAX_BYTES[asked.kind], EgressRule.TOO_LARGE),
        (day.bytes + asked.bytes > min(policy.max_bytes_per_day, ceiling.max_bytes_per_day), EgressRule.DAY_FULL),
        (_too_soon(rule, asked, day), EgressRule.TOO_SOON),
        (asked.epsilon > 0 and day.epsilon + asked.epsilon > policy.epsilon_per_day, EgressRule.LEDGER_EXHAUSTED),
        (asked.epsilon > 0 and day.epsilon_30_days + asked.epsilon > policy.epsilon_per_30_days, EgressRule.LEDGER_EXHAUSTED),
    )
    return next((why for no, why in noes if no), EgressRule.ALLOWED)


def may_tell_counts(policy: SitePolicy, regime: Regime) -> bool:
    """Whether a report of an update may tell what was counted over the site's rows: mirrored, asked, labelled, right.

    They have no floor, so they go only where the switch lets policy decide and the regime lets an estimate of accuracy out.
    """
    return policy.sovereignty == "normal" and "perf_estimate" in FLOORS[regime] & FLOORS[policy.regime]


class _Strict(yaml.SafeLoader):
    """YAML lets the last of two equal keys win; a policy that says two things says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        """Refuse a key that stands twice."""
        keys = [str(self.construct_object(key, deep=deep)) for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"{twice[0]} stands there twice")
        return super().construct_mapping(node, deep=deep)


def default_policy(site: str, regime: Regime) -> SitePolicy:
    """What holds where the site wrote nothing: operations and verdicts, no statistics."""
    return SitePolicy(site=site, regime=regime, allow=(Allow(kind="ops"), Allow(kind="drift_verdict")))


def load_policy(home: Path, site: str, regime: Regime) -> SitePolicy:
    """Read `egress.yaml`; no file is the default policy. Raises PolicyInvalid, naming the field and the rule."""
    path = home / POLICY_FILE
    if not path.exists():
        return default_policy(site, regime)
    try:
        if path.stat().st_size > SitePolicy.max_bytes:
            raise PolicyInvalid(f"{POLICY_FILE}: more than {SitePolicy.max_bytes} bytes")
        fields = yaml.load(path.read_text(), _Strict)  # noqa: S506 - a SafeLoader
        policy = SitePolicy.of_plain({"site": site, "regime": regime} | (fields or {}))
    except DocumentRefused as e:
        raise PolicyInvalid(f"{POLICY_FILE}: {e.problem}") from e
    except (OSError, TypeError, ValueError, yaml.YAMLError) as e:
        raise PolicyInvalid(f"{POLICY_FILE}: not a policy: {e}") from e
    if policy.site != site or policy.regime != regime:
        raise PolicyInvalid(f"{POLICY_FILE}: speaks of {policy.site} under {policy.regime}; this is {site} under {regime}")
    return policy


def _beyond(rule: Allow | None, asked: EgressRequest) -> bool:
    """The hub asks for more columns than the site lists: then it gets none of them."""
    return rule is not None and rule.features is not None and not asked.features <= set(rule.features)


def _strangers(rule: Allow | None, asked: EgressRequest) -> bool:
    if rule is None or rule.peers is None or asked.peers is None:
        return False
    return len(asked.peers & set(rule.peers)) < MIN_SITES


def _too_soon(rule: Allow | None, asked: EgressRequest, day: Day) -> bool:
    """An interval is for manners, not for privacy: a record of the future (the clock went back) does not silence this site."""
    if rule is None or asked.urgent or day.since_last_s is None:
        return False
    return 0 <= day.since_last_s < rule.interval_min_s


def turn_switch(home: Path, site: str, regime: Regime, position: Sovereignty) -> SitePolicy:
    """Write the switch's position into `egress.yaml` (made from the default where there is none). Raises PolicyInvalid."""
    policy = load_policy(home, site, regime).replace(sovereignty=position)
    fields = {key: value for key, value in policy.sparse.items() if key not in ("kind", "schema")}
    atomic_write(home / POLICY_FILE, yaml.safe_dump(fields, sort_keys=False).encode(), mode=0o600)
    return policy

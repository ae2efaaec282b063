"""The hub's own check of outbox records: floors hold on both sides, and a record that breaks them is quarantined. Pure.

A record has already been parsed (so it holds nothing that the types forbid) and its signature checked. Here it must also fit its
site's regime, the ceiling that the hub signed, the package it speaks of, and the record before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from model_formats.statistics.reference_profile import ReferenceProfile
from sync.core.types import Regime
from sync.protocol.egress import FLOORS, MAX_BYTES, MIN_ROWS, DriftHist, DriftVerdict, EgressRecord, RffMean
from sync.protocol.messages import EgressCeiling

__all__ = ["Breach", "KnownPackage", "breach_of", "judge"]


class Breach(StrEnum):
    """Why a record is quarantined."""

    BELOW_REGIME_FLOOR = "below_regime_floor"
    ABOVE_CEILING = "above_ceiling"
    TOO_LARGE = "too_large"
    TOO_FEW_ROWS = "too_few_rows"
    UNKNOWN_PACKAGE = "unknown_package"
    OTHER_EDGES = "other_edges"
    UNKNOWN_FEATURE = "unknown_feature"
    CHAIN_BROKEN = "chain_broken"


@dataclass(frozen=True, slots=True)
class KnownPackage:
    """What the hub knows of the package a record speaks of."""

    model: str
    version: int
    profile: ReferenceProfile


def judge(
    profile_of: Callable[[str], KnownPackage | None], ceiling: EgressCeiling | None = None
) -> Callable[[EgressRecord, Regime, EgressRecord | None], str | None]:
    """The check as ingest takes it: (record, regime, record before) -> why not, or None."""
    limit = ceiling or EgressCeiling()

    def look(record: EgressRecord, regime: Regime, previous: EgressRecord | None) -> str | None:
        known = profile_of(record.index) if record.index else None
        breach = breach_of(record, regime, previous, limit, known)
        return None if breach is None else breach.value

    return look


def breach_of(
    record: EgressRecord, regime: Regime, previous: EgressRecord | None, ceiling: EgressCeiling, known: KnownPackage | None
) -> Breach | None:
    """The first rule that a record breaks, None when it may be believed. `known` is None for a package the hub does not have."""
    kind = record.body.kind
    checks = (
        (kind not in FLOORS[regime], Breach.BELOW_REGIME_FLOOR),
        (kind not in ceiling.kinds, Breach.ABOVE_CEILING),
        (len(record.canonical()) > MAX_BYTES[kind], Breach.TOO_LARGE),
        (_too_few(record), Breach.TOO_FEW_ROWS),
        (kind != "ops" and not _names(record, known), Breach.UNKNOWN_PACKAGE),
        (known is not None and _other_edges(record, known), Breach.OTHER_EDGES),
        (known is not None and _beyond(record, known), Breach.UNKNOWN_FEATURE),
        (previous is not None and not _follows(record, previous), Breach.CHAIN_BROKEN),
    )
    return next((breach for broken, breach in checks if broken), None)


def _too_few(record: EgressRecord) -> bool:
    body = record.body
    if isinstance(body, DriftHist):
        least = 0 if body.noise_epsilon_milli else MIN_ROWS["drift_hist"] - body.rounded_to * 256
        return any(sum(c for c in f.counts if c > 0) < least for f in body.features)
    rows = getattr(body, "rows", None)
    return rows is not None and rows < MIN_ROWS[body.kind]


def _names(record: EgressRecord, known: KnownPackage | None) -> bool:
    return known is not None and (known.model, known.version) == (record.model, record.version)


def _other_edges(record: EgressRecord, known: KnownPackage) -> bool:
    body = record.body
    return isinstance(body, DriftVerdict | DriftHist | RffMean) and body.edges != known.profile.edges_digest


def _beyond(record: EgressRecord, known: KnownPackage) -> bool:
    """A feature that the profile does not have, or with another number of cells."""
    body, features = record.body, known.profile.features
    if isinstance(body, DriftVerdict):
        return any(f.feature >= len(features) for f in body.features)
    if isinstance(body, DriftHist):
        return any(f.feature >= len(features) or len(f.counts) != features[f.feature].cells for f in body.features)
    return isinstance(body, RffMean) and (known.profile.joint is None or len(body.mean) != known.profile.joint.dimensions)


def _follows(record: EgressRecord, previous: EgressRecord) -> bool:
    """A gap is lost mail and shows in the view; a fork or a step back is not believed."""
    if record.sequence == previous.sequence + 1:
        return record.previous == previous.digest
    return record.sequence > previous.sequence

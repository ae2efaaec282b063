"""Drift over the fleet: the sites' verdicts side by side, the exact sum of their histograms, and a summary in words. Pure.

Histograms are summed over the cells that every site kept apart (small cells were merged at the site), so the sum equals the
pooled histogram on those cells. A shift that most sites share calls for another model; one at a single site for a look there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np

from model_formats.core.document import Value
from model_formats.core.runtime import Array
from model_formats.core.types import AwareDatetime, Direction
from model_formats.statistics.multivariate import hotelling
from model_formats.statistics.reference_profile import ReferenceProfile
from model_formats.statistics.univariate import ColumnTest, best_p, compare, strange_cells
from sync.protocol.egress import MERGED, DriftHist, DriftVerdict, EgressRecord, Level, PerfEstimate, RffMean, p_bucket

__all__ = ["FleetDrift", "ShiftedFeature", "Pooled", "PooledColumn", "SiteDrift", "fleet_drift", "pool"]

Pattern = Literal["quiet", "one_site", "some_sites", "common"]
_COMMON = 0.5
"""A shift is common when at least this share of the sites that were heard (and more than one) has it."""


class ShiftedFeature(Value):
    """One feature of the profile, by its id, and which way it went."""

    feature: str
    direction: Direction
    p: int
    """p <= 10^-p."""


class SiteDrift(Value):
    """The last word of one spoke on one version."""

    site: str
    spoke: str
    level: Level
    evidence: int
    windows: int
    rows: int
    since: AwareDatetime
    """Start of the window in which the present level was first told."""
    until: AwareDatetime
    moved: tuple[ShiftedFeature, ...]
    joint: int
    confidence_fell: bool
    estimate: PerfEstimate | None = None


class PooledColumn(Value):
    """One feature over all sites that sent histograms."""

    feature: str
    reference: tuple[int, ...]
    counts: tuple[int, ...]
    """On the cells that all sites kept apart."""
    p: int
    direction: Direction


class Pooled(Value):
    """The sum over sites."""

    sites: int
    rows: int
    p: int
    columns: tuple[PooledColumn, ...]
    """Those that moved, surest first."""
    joint: int | None = None


class FleetDrift(Value):
    """One version over the fleet."""

    model: str
    version: int
    index: str
    pattern: Pattern
    sites: tuple[SiteDrift, ...]
    """Worst first: estimated accuracy lost times rows, then evidence."""
    pooled: Pooled | None
    words: tuple[str, ...]
    retrain: bool
    """Drift, and labels or a valid estimate that say it costs accuracy."""


@dataclass(frozen=True, slots=True)
class _About:
    model: str
    version: int
    index: str


def fleet_drift(
    records: Iterable[EgressRecord],
    profile_of: Callable[[str], ReferenceProfile | None],
    *,
    claim_of: Callable[[str], float | None] = lambda _: None,
    slo: float = 0.05,
) -> tuple[FleetDrift, ...]:
    """The view of every version that was spoken of, from believed records in any order.

    `claim_of` gives the accuracy that a package claims; a loss of more than `slo` against it counts as a loss that matters.
    """
    by_version: dict[_About, list[EgressRecord]] = {}
    for record in sorted(records, key=lambda r: (r.site, r.spoke, r.sequence)):
        if record.model is not None and record.version is not None and record.index is not None:
            by_version.setdefault(_About(record.model, record.version, record.index), []).append(record)
    return tuple(
        _view(about, found, profile_of(about.index), claim_of(about.index), slo)
        for about, found in sorted(by_version.items(), key=lambda item: (item[0].model, -item[0].version))
    )


def pool(profile: ReferenceProfile, bodies: Sequence[DriftHist]) -> dict[int, tuple[Array, Array, bool]]:
    """Sum histograms: feature -> (reference, counts, whether missing stands alone), on the cells that all kept apart.

    Exact: the sum of parts equals the whole. Bodies with other edges are left out: they must never be summed.
    """
    fitting = [b for b in bodies if b.edges == profile.edges_digest]
    found: dict[int, tuple[Array, Array, bool]] = {}
    for number, feature in enumerate(profile.features):
        cells = [f.counts for b in fitting for f in b.features if f.feature == number and len(f.counts) == feature.cells]
        if cells:
            start = np.flatnonzero(~(np.array(cells) == MERGED).any(axis=0))
            total = np.where(np.array(cells) == MERGED, 0, np.array(cells)).sum(axis=0)
            strange = feature.cells - strange_cells(feature)
            found[number] = (
                np.add.reduceat(np.asarray(feature.counts, np.int64), start),
                np.add.reduceat(total.astype(np.int64), start),
                bool(strange in start),
            )
    return found


def _view(
    about: _About, records: list[EgressRecord], profile: ReferenceProfile | None, claim: float | None, slo: float
) -> FleetDrift:
    sites = _sites(records, profile)
    ranked = tuple(sorted(sites, key=lambda s: (-_cost(s, claim), -s.evidence, s.site)))
    pooled = _pooled(profile, records) if profile else None
    pattern = _pattern(ranked)
    hurt = [s for s in ranked if s.level == "alarm" and _hurts(s, claim, slo)]
    return FleetDrift(
        model=about.model,
        version=about.version,
        index=about.index,
        pattern=pattern,
        sites=ranked,
        pooled=pooled,
        words=tuple(_words(ranked, pooled, pattern, hurt)),
        retrain=bool(hurt) and pattern in ("common", "some_sites"),
    )


def _sites(records: list[EgressRecord], profile: ReferenceProfile | None) -> list[SiteDrift]:
    by_spoke: dict[tuple[str, str], list[EgressRecord]] = {}
    for record in records:
        by_spoke.setdefault((record.site, record.spoke), []).append(record)
    return [s for found in by_spoke.values() if (s := _site(found, profile)) is not None]


def _site(records: list[EgressRecord], profile: ReferenceProfile | None) -> SiteDrift | None:
    verdicts = [(r, r.body) for r in records if isinstance(r.body, DriftVerdict)]
    if not verdicts:
        return None
    last, verdict = verdicts[-1]
    estimates = [r.body for r in records if isinstance(r.body, PerfEstimate)]
    return SiteDrift(
        site=last.site,
        spoke=last.spoke,
        level=verdict.level,
        evidence=verdict.evidence,
        windows=verdict.windows,
        rows=verdict.rows,
        since=_since(verdicts),
        until=last.end,
        moved=tuple(ShiftedFeature(feature=_id(profile, f.feature), direction=f.direction, p=f.p) for f in verdict.features),
        joint=verdict.joint,
        confidence_fell=verdict.confidence_fell,
        estimate=estimates[-1] if estimates else None,
    )


def _since(verdicts: list[tuple[EgressRecord, DriftVerdict]]) -> datetime:
    level, since = verdicts[-1][1].level, verdicts[-1][0].start
    for record, verdict in reversed(verdicts):
        if verdict.level != level:
            break
        since = record.start
    return since


def _pooled(profile: ReferenceProfile, records: list[EgressRecord]) -> Pooled | None:
    last = {(r.site, r.spoke): r.body for r in records if isinstance(r.body, DriftHist)}
    sums = pool(profile, list(last.values()))
    if not sums:
        return None
    tests = [_test(profile, number, *found) for number, found in sums.items()]
    moved = sorted((t for t in tests if t.p * len(tests) <= 0.01), key=lambda t: t.p)
    return Pooled(
        sites=len(last),
        rows=max(int(counts.sum()) for _, counts, _ in sums.values()),
        p=p_bucket(best_p(tests)),
        columns=tuple(_column(profile, t, sums[t.feature]) for t in moved[:16]),
        joint=_pooled_joint(profile, records),
    )


def _test(profile: ReferenceProfile, number: int, reference: Array, counts: Array, apart: bool) -> ColumnTest:  # noqa: FBT001
    feature = profile.features[number]
    strange = strange_cells(feature) if apart else 0
    return compare(number, feature.kind, reference.astype(np.float64), counts.astype(np.float64), min(strange, len(counts) - 1))


def _column(profile: ReferenceProfile, test: ColumnTest, found: tuple[Array, Array, bool]) -> PooledColumn:
    reference, counts, _ = found
    return PooledColumn(
        feature=profile.features[test.feature].id,
        reference=tuple(int(c) for c in reference),
        counts=tuple(int(c) for c in counts),
        p=p_bucket(test.p),
        direction=test.direction,
    )


def _pooled_joint(profile: ReferenceProfile, records: list[EgressRecord]) -> int | None:
    """The joint test on the mean over sites, each weighted by the rows it vouches for."""
    last = {(r.site, r.spoke): r.body for r in records if isinstance(r.body, RffMean) and r.body.edges == profile.edges_digest}
    if not last or profile.joint is None:
        return None
    rows = np.array([b.rows for b in last.values()])
    means = np.array([b.mean for b in last.values()]) / 32768.0
    return p_bucket(hotelling(profile.joint, (means * rows[:, None]).sum(axis=0) / rows.sum(), int(rows.sum())).p)


def _pattern(sites: Sequence[SiteDrift]) -> Pattern:
    alarmed = sum(s.level == "alarm" for s in sites)
    if not alarmed:
        return "quiet"
    if len(sites) > 1 and alarmed > 1 and alarmed >= _COMMON * len(sites):
        return "common"
    return "one_site" if alarmed == 1 else "some_sites"


def _cost(site: SiteDrift, claim: float | None) -> float:
    if site.estimate is None or not site.estimate.valid or claim is None:
        return 0.0
    return max(0.0, claim - site.estimate.estimate / 100) * site.rows


def _hurts(site: SiteDrift, claim: float | None, slo: float) -> bool:
    """The interval lies below what the package claims, less what is tolerated; labels or a valid estimate say so."""
    e = site.estimate
    return e is not None and e.valid and claim is not None and e.high / 100 < claim - slo


def _words(sites: Sequence[SiteDrift], pooled: Pooled | None, pattern: Pattern, hurt: Sequence[SiteDrift]) -> Iterable[str]:
    alarmed = [s for s in sites if s.level == "alarm"]
    if not alarmed:
        yield f"{len(sites)} of {len(sites)} sites see what the model was built on" if sites else "no site was heard"
    for direction_of, at in _shared(alarmed).items():
        feature, direction = direction_of
        since = min(s.since for s in at)
        yield f"{feature} {_DIRECTIONS[direction]} at {len(at)} of {len(sites)} sites since {since:%A %d %B}"
    for site in alarmed:
        if not site.moved and site.joint >= 2:
            yield f"{site.site}: columns look right one by one, but not together (a relation between them changed)"
    if pattern == "common":
        yield "the shift is common: look for one cause, and consider training on newer data"
    elif pattern == "one_site":
        yield f"only {alarmed[0].site} shows it: look at that site first (a device, a setting, its own customers)"
    for site in hurt:
        if site.estimate:
            e = site.estimate
            yield f"{site.site}: accuracy there is about {e.estimate} % ({e.low} to {e.high} %), by {_METHODS[e.method]}{e.span}"
    if pooled is not None:
        yield f"pooled over {pooled.sites} sites and {pooled.rows} rows: {len(pooled.columns)} features moved"


def _shared(sites: Sequence[SiteDrift]) -> dict[tuple[str, Direction], list[SiteDrift]]:
    """The features that moved, with the sites where they did; at most five, most sites first."""
    found: dict[tuple[str, Direction], list[SiteDrift]] = {}
    for site in sites:
        for moved in site.moved:
            found.setdefault((moved.feature, moved.direction), []).append(site)
    return dict(sorted(found.items(), key=lambda item: -len(item[1]))[:5])


def _id(profile: ReferenceProfile | None, number: int) -> str:
    return profile.features[number].id if profile is not None and number < len(profile.features) else f"feature {number}"


_DIRECTIONS: dict[Direction, str] = {
    "up": "is higher",
    "down": "is lower",
    "spread": "varies more",
    "narrow": "varies less",
    "mix": "has another mix",
    "missing": "is missing or unknown more often",
    "none": "changed",
}
_METHODS = {"labels": "labels", "regression": "an estimate without labels"}

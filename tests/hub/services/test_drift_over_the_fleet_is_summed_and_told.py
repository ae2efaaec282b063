from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from hub.rules.fleet_drift import fleet_drift, pool
from model_formats.statistics.reference_profile import columns, count, rff
from spoke_agent.outbox.floors import merge_small
from sync.protocol.egress import DriftHist, DriftVerdict, EgressRecord, FeatureCounts, FeatureVerdict, PerfEstimate, RffMean
from tests.samples.tabular import INDEX, MODEL, VERSION, profile, scores, table

AT = datetime(2026, 3, 3, 12, 15, tzinfo=UTC)
EDGES = profile().edges_digest


def record(site: str, body: Any, sequence: int = 1, at: datetime = AT) -> EgressRecord:
    return EgressRecord(
        site=site,
        spoke="main",
        sequence=sequence,
        previous=None,
        policy=INDEX,
        model=MODEL,
        version=VERSION,
        index=INDEX,
        start=at,
        end=at,
        body=body,
    )


def verdict(level: str = "quiet", feature: int | None = None, joint: int = 0) -> DriftVerdict:
    features = () if feature is None else (FeatureVerdict(feature=feature, p=6, direction="up"),)
    evidence = {"quiet": 0, "watch": 2, "alarm": 5}[level]
    return DriftVerdict(
        edges=EDGES,
        level=level,  # type: ignore[arg-type]
        evidence=evidence,
        budget=100,
        p=6,
        joint=joint,
        windows=1,
        rows=500,
        features=features,
    )


def counted(rows: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
    return [[int(c) for c in counts] for counts in count(profile(), columns(profile(), {"x": rows}, {"y": scores(rows, rng)}))]


def hist(counts: list[list[int]], least: int = 10) -> DriftHist:
    features = [FeatureCounts(feature=i, counts=merged) for i, c in enumerate(counts) if (merged := merge_small(c, least))]
    return DriftHist(edges=EDGES, rounded_to=1, features=tuple(features))


def test_the_sum_over_a_hundred_sites_is_the_pooled_histogram_exactly():
    rng = np.random.default_rng(0)
    sites = [counted(table(2000, rng) + np.float32(rng.normal(0, 0.1)), rng) for _ in range(100)]
    pooled = pool(profile(), [hist(counts) for counts in sites])
    for number, (reference, sums, _) in pooled.items():
        whole = np.sum([counts[number] for counts in sites], axis=0)
        assert sums.sum() == whole.sum() == 200_000
        assert reference.sum() == sum(profile().features[number].counts)
        cuts = set(np.cumsum(sums).tolist())
        assert cuts <= set(np.cumsum(whole).tolist())  # each cell of the sum is a union of whole cells
    kept = sum(len(s) for _, s, _ in pooled.values())
    assert kept >= 0.6 * sum(f.cells for f in profile().features)


def test_counts_on_other_edges_are_never_summed():
    rng = np.random.default_rng(1)
    good = hist(counted(table(3000, rng), rng))
    other = good.replace(edges=INDEX)
    ours = {n: s.tolist() for n, (_, s, _) in pool(profile(), [good]).items()}
    assert {n: s.tolist() for n, (_, s, _) in pool(profile(), [good, other]).items()} == ours


def test_a_shift_that_most_sites_share_is_told_apart_from_one_site():
    shared = [record(s, verdict("alarm", 0)) for s in ("a", "b", "c")] + [record("d", verdict())]
    (view,) = fleet_drift(shared, lambda _: profile())
    assert view.pattern == "common"
    assert any("c0 is higher at 3 of 4 sites since Tuesday" in w for w in view.words)
    (view,) = fleet_drift([record("a", verdict("alarm", 0)), record("b", verdict()), record("c", verdict())], lambda _: profile())
    assert view.pattern == "one_site"
    assert any("only a shows it" in w for w in view.words)


def test_a_fleet_like_the_reference_is_quiet():
    (view,) = fleet_drift([record(s, verdict()) for s in "abc"], lambda _: profile())
    assert view.pattern == "quiet"
    assert not view.retrain


def test_the_last_word_of_a_site_counts_and_says_since_when():
    told = [
        record("a", verdict(), 1, AT - timedelta(days=3)),
        record("a", verdict("alarm", 0), 2, AT - timedelta(days=2)),
        record("a", verdict("alarm", 0), 3, AT),
    ]
    (view,) = fleet_drift(reversed(told), lambda _: profile())
    assert view.sites[0].level == "alarm"
    assert view.sites[0].since == AT - timedelta(days=2)


def test_sites_are_ranked_by_what_the_drift_costs_there():
    def estimate(percent: int) -> PerfEstimate:
        return PerfEstimate(method="regression", estimate=percent, low=percent - 5, high=percent + 5, valid=True, rows=500)

    told = [record(s, verdict("alarm", 0)) for s in ("a", "b", "c")]
    told += [record("a", estimate(95), 2), record("b", estimate(60), 2), record("c", estimate(80), 2)]
    (view,) = fleet_drift(told, lambda _: profile(), claim_of=lambda _: 0.97)
    assert [s.site for s in view.sites] == ["b", "c", "a"]
    assert view.retrain  # common, and two sites are surely below the claim


def test_drift_without_a_valid_estimate_or_labels_does_not_ask_for_training():
    doubtful = PerfEstimate(method="regression", estimate=40, low=20, high=60, valid=False, rows=500)
    told = [record(s, verdict("alarm", 0)) for s in "abc"] + [record(s, doubtful, 2) for s in "abc"]
    (view,) = fleet_drift(told, lambda _: profile(), claim_of=lambda _: 0.97)
    assert view.pattern == "common"
    assert not view.retrain


def test_a_small_shift_that_no_site_can_see_shows_in_the_pool():
    rng = np.random.default_rng(2)
    told = []
    for i in range(20):
        rows = table(2000, rng)
        rows[:, 0] += 0.05
        told += [record(f"s{i}", verdict()), record(f"s{i}", hist(counted(rows, rng)), 2)]
        joint = rff(profile(), columns(profile(), {"x": rows}, {"y": scores(rows, rng)})).mean(axis=0)
        told.append(record(f"s{i}", RffMean(edges=EDGES, rows=2000, mean=tuple(round(float(v) * 32768) for v in joint)), 3))
    (view,) = fleet_drift(told, lambda _: profile())
    assert view.pooled is not None
    assert view.pooled.rows == 40_000
    assert next(c.feature for c in view.pooled.columns) == "c0"
    assert view.pooled.columns[0].direction == "up"
    assert view.pooled.joint is not None


def test_an_unknown_package_still_shows_its_verdicts():
    (view,) = fleet_drift([record("a", verdict("alarm", 3))], lambda _: None)
    assert view.sites[0].moved[0].feature == "feature 3"
    assert view.pooled is None

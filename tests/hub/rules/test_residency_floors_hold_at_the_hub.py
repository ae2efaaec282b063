from datetime import UTC, datetime
from typing import Any

import pytest

from hub.rules.egress_residency import Breach, KnownPackage, breach_of, judge
from hub.rules.targeting import TargetSpoke, may_have
from sync.core.types import Reason, SpokeId
from sync.protocol.egress import DriftHist, DriftVerdict, EgressRecord, FeatureCounts, FeatureVerdict, Ops, PerfEstimate, RffMean
from sync.protocol.messages import EgressCeiling
from tests.samples.tabular import INDEX, MODEL, VERSION, profile

AT = datetime(2026, 3, 1, 12, 15, tzinfo=UTC)
EDGES = profile().edges_digest
KNOWN = KnownPackage(MODEL, VERSION, profile())
VERDICT = DriftVerdict(edges=EDGES, level="quiet", evidence=0, budget=100, p=0, joint=0, windows=1, rows=200)


def record(body: Any, **changes: Any) -> EgressRecord:
    fields: dict[str, Any] = {"site": "dubai", "spoke": "main", "sequence": 1, "previous": None, "policy": INDEX}
    fields |= {"model": MODEL, "version": VERSION, "index": INDEX, "start": AT, "end": AT, "body": body}
    return EgressRecord(**(fields | changes))


def hist(feature: int = 0, cells: int | None = None, count: int = 100, edges: str = EDGES) -> DriftHist:
    counts = FeatureCounts(feature=feature, counts=(count,) * (cells or profile().features[min(feature, 11)].cells))
    return DriftHist(edges=edges, rounded_to=1, features=(counts,))


@pytest.mark.parametrize(
    ("body", "regime", "changes", "breach"),
    [
        (VERDICT, "ae-health", {}, None),
        (hist(), "gdpr", {}, None),
        (Ops(version=(0, 1, 0), disk_free_percent=1, memory_free_percent=1, uptime_hours=1), "ae-health", {}, None),
        (hist(), "ae-health", {}, Breach.BELOW_REGIME_FLOOR),
        (PerfEstimate(method="labels", estimate=5, low=1, high=9, valid=True, rows=200), "ae-cbuae", {}, None),
        (hist(count=10), "gdpr", {}, Breach.TOO_FEW_ROWS),
        (VERDICT.replace(rows=0), "gdpr", {}, Breach.TOO_FEW_ROWS),
        (VERDICT, "gdpr", {"version": 9}, Breach.UNKNOWN_PACKAGE),
        (hist(edges=INDEX), "gdpr", {}, Breach.OTHER_EDGES),
        (hist(feature=99, cells=44), "gdpr", {}, Breach.UNKNOWN_FEATURE),
        (hist(cells=200), "gdpr", {}, Breach.UNKNOWN_FEATURE),
        (
            VERDICT.replace(features=(FeatureVerdict(feature=50, p=3, direction="up"),)),
            "gdpr",
            {},
            Breach.UNKNOWN_FEATURE,
        ),
        (RffMean(edges=EDGES, rows=1000, mean=(1, 2, 3)), "gdpr", {}, Breach.UNKNOWN_FEATURE),
    ],
)
def test_what_breaks_a_floor_is_quarantined_by_name(body: Any, regime: Any, changes: dict[str, Any], breach: Breach | None):
    assert breach_of(record(body, **changes), regime, None, EgressCeiling(), KNOWN) is breach


def test_what_the_hub_did_not_ask_for_is_quarantined():
    assert breach_of(record(hist()), "gdpr", None, EgressCeiling(kinds=("ops",)), KNOWN) is Breach.ABOVE_CEILING


def test_a_package_that_the_hub_does_not_have_is_not_believed():
    assert judge(lambda _: None)(record(VERDICT), "gdpr", None) == "unknown_package"
    assert judge(lambda _: KNOWN)(record(VERDICT), "gdpr", None) is None


def test_a_fork_or_a_step_back_in_the_chain_is_not_believed_but_a_gap_is():
    first = record(VERDICT)
    second = record(VERDICT, sequence=2, previous=first.digest)
    forged = record(VERDICT, sequence=2, previous=INDEX)
    later = record(VERDICT, sequence=7, previous=INDEX)
    assert breach_of(second, "gdpr", first, EgressCeiling(), KNOWN) is None
    assert breach_of(forged, "gdpr", first, EgressCeiling(), KNOWN) is Breach.CHAIN_BROKEN
    assert breach_of(first, "gdpr", second, EgressCeiling(), KNOWN) is Breach.CHAIN_BROKEN
    assert breach_of(later, "gdpr", first, EgressCeiling(), KNOWN) is None


def test_an_empty_residency_label_means_nowhere():
    frankfurt, dubai = TargetSpoke(SpokeId("frankfurt"), "eu", "gdpr"), TargetSpoke(SpokeId("dubai"), "eu", "ae-health")
    assert may_have(frankfurt, (), ()) is Reason.ZONE_FORBIDDEN
    assert may_have(frankfurt, ("eu",), ()) is Reason.REGIME_FORBIDDEN
    assert may_have(frankfurt, ("eu",), ("gdpr",)) is None
    assert may_have(dubai, ("eu",), ("gdpr",)) is Reason.REGIME_FORBIDDEN

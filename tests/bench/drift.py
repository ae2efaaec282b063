"""Drift: false alarms, power, sums, sizes and cost: `python -m tests.bench.drift`. Writes build/bench/drift.json.

Ten columns (five correlated normals, bimodal, Poisson, lognormal, two categories), reference of 5000 rows drawn anew every 25
windows. Evidently and alibi-detect are given the same windows (the first of each case: one may take a second), each in an
environment of its own (`drift_peers.py`); `--no-peers` leaves them out, `--quick` takes fewer windows.

The notes give names and powers of their windows, not their numbers. A test that is not ours stands in the notes too (`KS exact +
Bonf`: exact KS, chi-squared of categories), so it tells how alike the windows are: on "mix" it finds .76 to .80 here, .88 there,
on "mix of two" (a tenth moves from the first category to the second) .91, so that row is the one compared; "mix" is told as well.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model_formats.statistics.reference_profile import ReferenceProfile, build_profile, columns, count
from spoke_agent.drift.verdict import judge
from spoke_agent.outbox.floors import merge_small
from sync.protocol.egress import DriftHist, FeatureCounts
from tests.samples.tabular import CONTRACT, scores, table

BENCH = Path("build/bench")
TARGET = 0.01
SIZES = {200: 600, 500: 600, 2000: 400, 20_000: 100, 50_000: 60}
DRIFTS = ("small shift", "all shifted", "scale", "mix of two", "mix", "relation")
FIELD = {  # power of the union in the field notes, p < .01, by size and drift
    (500, "small shift"): 0.90,
    (500, "all shifted"): 0.17,
    (500, "scale"): 1.0,
    (500, "mix of two"): 0.88,
    (500, "relation"): 1.0,
    (2000, "small shift"): 1.0,
    (2000, "all shifted"): 0.95,
    (2000, "scale"): 1.0,
    (2000, "mix of two"): 1.0,
    (2000, "relation"): 1.0,
}
PLAIN = {"small shift": 0.78, "all shifted": 0.16, "scale": 0.28, "mix of two": 0.88, "mix": 0.88, "relation": 0.02}
"""Power of exact KS with Bonferroni in the field notes, n = 500."""


def main() -> None:
    share = 0.2 if "--quick" in sys.argv else 1.0
    rows = [*false_alarms(share), *power(share), fleet(), cost(), capture()]
    if "--no-peers" not in sys.argv:
        rows = beside(rows, share)
    estimate = estimate_error()
    rows += [estimate] if estimate else []
    page = {"name": "drift", "rows": rows, "ratios": ratios(rows)}
    BENCH.mkdir(parents=True, exist_ok=True)
    (BENCH / "drift.json").write_text(json.dumps(page, indent=2))
    for row in rows:
        print("  ".join(f"{k} {v}" for k, v in row.items()))
    print(json.dumps(page["ratios"], indent=2))


def reference(rng: np.random.Generator) -> ReferenceProfile:
    return profiled(*reference_rows(rng))


def reference_rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = table(5000, rng)
    return rows, scores(rows, rng)


def profiled(rows: np.ndarray, outputs: np.ndarray) -> ReferenceProfile:
    """Inputs only: the outputs of these windows are noise and would only widen Bonferroni's divisor."""
    profile = build_profile(CONTRACT, {"x": rows}, {"y": outputs})
    return profile.replace(features=tuple(f for f in profile.features if f.source == "input"))


def pairs(rows: int, number: int, drift: str, seed: int) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], np.ndarray]]:
    """Reference (the same object until it is drawn anew) and window, for us and for the peers."""
    rng = np.random.default_rng(seed)
    kept = reference_rows(rng)
    for i in range(number):
        if i % 25 == 24:
            kept = reference_rows(rng)
        yield kept, table(rows, rng, drift)


def windows(rows: int, number: int, drift: str, seed: int) -> np.ndarray:
    found: list[float] = []
    seen, profile = None, None
    for kept, window in pairs(rows, number, drift, seed):
        profile = profile if seen is kept else profiled(*kept)
        seen = kept
        found.append(judge(profile, columns(profile, {"x": window}, {})).p)
    return np.array(found)


def beside(rows: list[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """The same cases with a column for each verdict of each peer: share of its windows that alarm."""
    from tests.bench.drift_peers import PEERS, ask

    cases = [r for r in rows if (r["case"] == "no drift" and r["rows"] <= 2000) or "power" in r]
    for peer in PEERS:
        number = max(5, int(peer.windows * share))
        asked = {f"{r['case']} {r['rows']}": [(k[0], w) for k, w in pairs(r["rows"], number, _drift(r), _seed(r))] for r in cases}
        found = ask(peer, asked)
        for r in cases:
            r |= found.get(f"{r['case']} {r['rows']}", {})
        rows = [*rows, {"case": peer.name, **found["about"]}]
    return rows


def _drift(row: dict[str, Any]) -> str:
    return "none" if row["case"] == "no drift" else str(row["case"])


def _seed(row: dict[str, Any]) -> int:
    return int(row["rows"]) + (row["case"] != "no drift")


def false_alarms(share: float) -> list[dict[str, Any]]:
    found = []
    for rows, number in SIZES.items():
        ps = windows(rows, max(20, int(number * share)), "none", rows)
        found.append({"case": "no drift", "rows": rows, "windows": len(ps), "alarms": int((ps < TARGET).sum())})
    return found


def power(share: float) -> list[dict[str, Any]]:
    found = []
    for rows in (500, 2000):
        for drift in DRIFTS:
            ps = windows(rows, max(20, int(150 * share)), drift, rows + 1)
            row = {"case": drift, "rows": rows, "windows": len(ps), "power": round(float((ps < TARGET).mean()), 3)}
            if (rows, drift) in FIELD:
                row["field"] = FIELD[rows, drift]
            if rows == 500:
                row |= {"ks_exact_bonferroni": plain(rows, max(20, int(150 * share)), drift), "field_ks_exact": PLAIN[drift]}
            found.append(row)
    return found


def plain(rows: int, number: int, drift: str) -> float:
    """Power of a test that is not ours on windows of the same make: exact KS, chi-squared of categories, Bonferroni."""
    from scipy import stats

    rng = np.random.default_rng(rows)
    found = []
    for i in range(number):
        if i % 25 == 0:
            kept = table(5000, rng)
        fresh = table(rows, rng, drift)
        ps = [stats.ks_2samp(kept[:, c], fresh[:, c], method="asymp").pvalue for c in range(8)]
        for c in (8, 9):
            counts = np.array([np.bincount(t[:, c].astype(int), minlength=5) for t in (kept, fresh)])
            ps.append(stats.chi2_contingency(counts[:, counts.any(axis=0)], correction=False).pvalue)
        found.append(min(ps) * len(ps) < TARGET)
    return round(float(np.mean(found)), 3)


def fleet() -> dict[str, Any]:
    """A hundred sites, whole and with small cells merged: is the sum the pooled histogram?"""
    from hub.rules.fleet_drift import pool

    rng = np.random.default_rng(7)
    profile = reference(rng)
    whole, bodies, sizes = [], [], []
    for _ in range(100):
        site = table(2000, rng) + np.float32(rng.normal(0, 0.3))
        counts = [[int(c) for c in cells] for cells in count(profile, columns(profile, {"x": site}, {}))]
        features = tuple(FeatureCounts(feature=i, counts=cells) for i, c in enumerate(counts) if (cells := merge_small(c, 10)))
        whole.append(counts)
        bodies.append(DriftHist(edges=profile.edges_digest, rounded_to=1, features=features))
        sizes += [len(f.json) for f in features]
    exact = all(_matches(sums, [w[number] for w in whole]) for number, (_, sums, _) in pool(profile, bodies).items())
    return {"case": "sum of 100 sites", "exact": exact, "bytes_per_feature": round(float(np.mean(sizes)), 1), "most": max(sizes)}


def _matches(sums: np.ndarray, parts: list[list[int]]) -> bool:
    """Every cell of the sum is the exact sum of a run of pooled cells."""
    return set(np.cumsum(sums).tolist()) <= set(np.cumsum(np.sum(parts, axis=0)).tolist())


def cost() -> dict[str, Any]:
    rng = np.random.default_rng(8)
    profile = reference(rng)
    rows = table(1000, rng)
    best = min(_timed(lambda: judge(profile, columns(profile, {"x": rows}, {}))) for _ in range(20))
    return {"case": "test of 1000 rows, 10 features", "ms": round(best * 1e3, 2)}


def capture() -> dict[str, Any]:
    """Counting rows in batches of 256, per row and 10 features: what drift costs for each request."""
    rng = np.random.default_rng(9)
    profile = reference(rng)
    rows = table(256, rng)
    best = min(_timed(lambda: count(profile, columns(profile, {"x": rows}, {}))) for _ in range(50))
    return {"case": "count in batches of 256, 10 features", "us_per_row": round(best / 256 * 1e6, 2)}


def estimate_error() -> dict[str, Any] | None:
    """Of the digits package, if the learning bench has built it: error on families of damage that the fit did not see."""
    from model_formats.package import ImageLayout, open_package

    index = BENCH / "digits-package" / "index"
    if not index.exists():
        return None
    found = open_package(ImageLayout(BENCH / "digits-package" / "layout"), index.read_text()).profile.estimate
    return (
        {"case": "accuracy estimate, unseen families", "mae": round(found.error, 4), "families": len(found.families)}
        if found
        else None
    )


def _timed(call: Any) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    quiet = [r for r in rows if r["case"] == "no drift"]
    powers = [r for r in rows if "power" in r]
    by_case = {r["case"]: r for r in rows}
    found = {
        "false_alarm_rate_over_target": round(sum(r["alarms"] for r in quiet) / sum(r["windows"] for r in quiet) / TARGET, 3),
        "worst_false_alarm_rate_over_target": round(max(r["alarms"] / r["windows"] for r in quiet) / TARGET, 3),
        "least_power_minus_field": round(min(r["power"] - r["field"] for r in powers if "field" in r), 3),
        "fleet_sum_equals_pooled": by_case["sum of 100 sites"]["exact"],
        "bytes_per_feature_window": by_case["sum of 100 sites"]["bytes_per_feature"],
        "capture_us_per_row_10_features": by_case["count in batches of 256, 10 features"]["us_per_row"],
    }
    if "accuracy estimate, unseen families" in by_case:
        found["estimate_mae_unseen_family"] = by_case["accuracy estimate, unseen families"]["mae"]
    return found


if __name__ == "__main__":
    main()

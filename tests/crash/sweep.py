"""`make sweep`: every point of an update, in every way it can go wrong. Prints how many, and how long it took.

`--sample N` takes so many of each flow, spread over all states; `--flow` one flow alone. Homes are in memory where there is
/dev/shm. The exit status is 1 when a case fails, and each failure names its case.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.crash.case import FLOWS, Case, Cases, Flow
from tests.crash.points import FAULTS, WRITES, possible

AGAIN = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
"""Points of the second start at which it is killed too; three of them for each point of the first."""
DELTA = ("staging", "verified")
"""The states in which an update by delta differs from one by blocks; the others are cut there."""
_running: Cases


def sweep(folder: Path, flow: Flow, *, sample: int | None = None, seed: int = 0, workers: int = 1) -> dict[str, Any]:
    """Run the cases of one flow; returns the figures. Failures are listed, not raised."""
    global _running
    began = time.monotonic()
    _running = cases = Cases(folder / flow, flow)
    points = cases.count()
    todo = list(cases_of(flow, points))
    chosen = todo if sample is None else _sample(todo, points, sample, seed)
    ended: Counter[str] = Counter()
    failures = []
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for number, (case, end, why) in enumerate(pool.imap_unordered(_try, chosen, chunksize=4), start=1):
            ended[end] += 1
            if why:
                failures.append(f"{case}: {points[case.at]}: {why}")
                print(f"FAILED {failures[-1]}", file=sys.stderr, flush=True)
            if number % 500 == 0:
                print(f"  {flow}: {number} of {len(chosen)} after {time.monotonic() - began:.0f} s", flush=True)
    return {
        "points": len(points),
        "kernel_writes": int(cases.written),
        "writes": sum(point.split()[1] in WRITES for point in points),
        "cases": len(chosen),
        "of": len(todo),
        "by_fault": dict(Counter(f"{c.fault} twice" if c.again is not None else c.fault for c in chosen)),
        "by_state": dict(Counter(points[c.at].split()[0] for c in chosen)),
        "ended": dict(ended),
        "failures": failures,
        "seconds": round(time.monotonic() - began, 1),
    }


def cases_of(flow: Flow, points: list[str]) -> Iterator[Case]:
    """Every point in every way, and (over the bus) every point killed and then killed again in the start after it."""
    for at, point in enumerate(points):
        if flow == "delta" and not point.startswith(DELTA):
            continue
        yield from (Case(flow, at, fault) for fault in FAULTS if possible(point, fault))
        if flow == "blocks":
            yield from (Case(flow, at, "kill", again) for again in Random(at).sample(AGAIN, 3))


def _sample(todo: list[Case], points: list[str], size: int, seed: int) -> list[Case]:
    """The same share of every state, as far as there are so many."""
    by_state: dict[str, list[Case]] = {}
    for case in Random(seed).sample(todo, len(todo)):
        by_state.setdefault(points[case.at].split()[0], []).append(case)
    rounds = (case for turn in zip(*map(_endless, by_state.values()), strict=False) for case in turn if case is not None)
    return [case for case, _ in zip(rounds, range(min(size, len(todo))), strict=False)]


def _endless(cases: Iterable[Case]) -> Iterator[Case | None]:
    yield from cases
    while True:
        yield None


def _try(case: Case) -> tuple[Case, str, str]:
    try:
        return case, _running.run(case), ""
    except Exception as e:
        return case, "failed", f"{type(e).__name__}: {e}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, metavar="N", help="so many cases of each flow")
    parser.add_argument("--seed", type=int, default=0, help="another sample of that size")
    parser.add_argument("--flow", choices=FLOWS, action="append", help="only this one")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that work side by side")
    parser.add_argument("--out", type=Path, default=Path("build/sweep.json"), help="where the figures are written")
    asked = parser.parse_args()
    memory, found = Path("/dev/shm"), {}
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=memory if memory.is_dir() else None) as folder:
        for flow in asked.flow or FLOWS:
            found[flow] = sweep(Path(folder), flow, sample=asked.sample, seed=asked.seed, workers=asked.workers)
            _tell(flow, found[flow])
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=2))
    total = {name: sum(f[name] for f in found.values()) for name in ("points", "cases", "seconds")}
    failed = sum(len(f["failures"]) for f in found.values())
    print(f"{total['cases']} cases at {total['points']} points in {total['seconds']:.0f} s, {failed} failed")
    return 1 if failed else 0


def _tell(flow: str, found: dict[str, Any]) -> None:
    print(f"{flow}: {found['points']} points, {found['cases']} cases in {found['seconds']} s", flush=True)
    for name in ("by_fault", "by_state", "ended"):
        print("  " + ", ".join(f"{count} {what}" for what, count in sorted(found[name].items())), flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""`make sweep`: every point of an update, in every way it can go wrong. Prints how many, and how long it took.

`--sample N` takes so many, spread over all states; folders are in memory where the machine has /dev/shm.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.crash.case import Cases
from tests.crash.points import MODES

AGAIN = (0, 1, 2, 3, 5, 8, 13, 21, 34)
"""Points of the second start at which the power fails again."""
Case = tuple[int, str, int | None]


def sweep(folder: Path, *, sample: int | None = None) -> dict[str, object]:
    """Run the cases; returns the figures. Failures are listed, not raised."""
    cases, began = Cases(folder), time.monotonic()
    points = cases.count()
    todo = cases_of(points, sample)
    ended: Counter[str] = Counter()
    by_state: Counter[str] = Counter()
    failures = []
    for at, mode, again in todo:
        by_state[points[at].split()[0]] += 1
        try:
            ended[cases.run(at, mode, again)] += 1
        except Exception as e:
            failures.append(f"point {at} ({points[at]}), {mode}, again at {again}: {type(e).__name__}: {e}")
    return {
        "points": len(points),
        "cases": len(todo),
        "by_state": dict(by_state),
        "ended": dict(ended),
        "failures": failures,
        "seconds": round(time.monotonic() - began, 1),
    }


def cases_of(points: list[str], sample: int | None) -> list[Case]:
    """Every point in every mode, and every point followed by a second cut in the start after it; or a sample over all states."""
    once: list[Case] = [(at, mode, None) for at in range(len(points)) for mode in MODES]
    twice: list[Case] = [(at, "before", again) for at in range(len(points)) for again in AGAIN]
    todo = once + twice
    if sample is None or sample >= len(todo):
        return todo
    random = Random(0)
    states = sorted({point.split()[0] for point in points})
    share = -(-sample // len(states))
    chosen: set[int] = set()
    for state in states:
        mine = [i for i, (at, _, _) in enumerate(todo) if points[at].split()[0] == state]
        chosen |= set(random.sample(mine, min(share, len(mine))))
    rest = [i for i in range(len(todo)) if i not in chosen]
    chosen |= set(random.sample(rest, max(0, sample - len(chosen))))
    return [todo[i] for i in sorted(chosen)]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int)
    asked = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=memory if memory.is_dir() else None) as folder:
        found = sweep(Path(folder), sample=asked.sample)
    out = Path("build/sweep.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=2))
    print(json.dumps({k: v for k, v in found.items() if k != "failures"}, indent=2))
    for line in found["failures"]:
        print(f"FAILED {line}", file=sys.stderr)
    print(f"{found['cases']} cases at {found['points']} points in {found['seconds']} s, {len(found['failures'])} failed")
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())

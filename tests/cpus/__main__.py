"""`make cpus`: every example package and one whole spoke on every class of CPU; a table, and build/cpus/cpus.json.

`python -m tests.cpus host avx2` for some classes. A class that cannot be had is named with the reason and left out. The status
is 1 when no way to run a package is right on a class, or a spoke does not get through.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from examples.demo.stage import CommandFailed
from tests.cpus.machines import MACHINES, Machine
from tests.cpus.measure import Packages, builds, cross_build_equal, figures, measure, table
from tests.cpus.rig import Rig, RunEnded
from tests.cpus.sources import VERSIONS
from tests.cpus.whole_spoke import hub_with, run_spoke


def main(names: list[str]) -> int:
    """Measure, print, write."""
    rig = Rig()
    chosen = [m for m in MACHINES if not names or m.name in (*names, "host")]
    for machine in chosen:
        if why := rig.lacks(machine):
            print(f"{machine.name} is left out: {why}", flush=True)
    here = [m for m in chosen if not rig.lacks(m)]
    packages = builds(rig)
    rows = measure(rig, here, packages)
    spokes = whole_spokes(rig, here, packages)
    found = {**figures(rows), "cross_build_equal": cross_build_equal(packages)}
    page = {"name": "cpus", "rows": table(rows), "spokes": spokes, "ratios": found}
    (rig.folder / "cpus.json").write_text(json.dumps(page, indent=2))
    print(json.dumps(found, indent=2))
    worst = max(value for name, value in found.items() if name.startswith("golden_worst"))
    return int(worst > 1 or any("failed" in spoke for spoke in spokes))


def whole_spokes(rig: Rig, machines: list[Machine], packages: Packages) -> list[dict[str, Any]]:
    """A spoke on each class, with digits built on another x86 class: on AVX2 where the spoke is on none."""
    built = {m: folder for (model, m), (folder, _) in packages.items() if model == "digits"}

    def one(machine: Machine) -> dict[str, Any]:
        other = next((m for m in ("avx2", "sse42", "host") if m in built and m != machine.name), "host")
        print(f"a whole spoke on {machine.name}, with digits built on {other}", flush=True)
        try:
            done: dict[str, Any] = msgspec.to_builtins(run_spoke(rig, machine, stage, VERSIONS[other], other))
        except (RunEnded, CommandFailed, OSError, TimeoutError) as e:
            done = {"machine": machine.name, "built_on": other, "failed": str(e)}
        print(json.dumps(done), flush=True)
        return done

    with (
        hub_with(rig.folder / "stage", {VERSIONS[m]: f for m, f in built.items()}) as stage,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        return list(pool.map(one, machines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

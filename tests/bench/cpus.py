"""Every class of CPU: `python -m tests.bench.cpus`. Writes build/bench/cpus.json.

For the CNN, MiniLM topics and breast-cancer, on the host and on the classes that qemu emulates: how far INT8 is from the golden
outputs and how much it loses against fp32, over every way that a spoke there may serve; whether golden files are the same bytes
whatever class built them. Processor time is the host's alone, best of alternating rounds, of the way that a spoke here chooses.
"""

import json
from pathlib import Path

import numpy as np

from model_formats.build.dataset import read_rows
from model_formats.core.cpu_class import this_class
from model_formats.core.runtime import Session, candidates
from model_formats.documents.package_spec import GOLDEN, SPEC, PackageSpec
from model_formats.package.golden import read_golden
from model_formats.runtimes.select import choose_engine, open_session
from tests.bench.quantize import times
from tests.cpus.machines import HOST, MACHINES
from tests.cpus.measure import Packages, builds, cross_build_equal, figures, measure, table
from tests.cpus.rig import Rig
from tests.cpus.sources import LARGER, build_on, source

OUT = Path("build/bench/cpus.json")


def main() -> None:
    """Measure, print, write."""
    rig = Rig()
    packages = builds(rig)
    rows = measure(rig, [m for m in MACHINES if not rig.lacks(m)], packages)
    ratios = {**figures(rows), **cpu(rig, packages), "cross_build_equal": cross_build_equal(packages)}
    left_out = {m.name: why for m in MACHINES if (why := rig.lacks(m))}
    page = {"name": "cpus", "host": this_class(), "left_out": left_out, "rows": table(rows), "ratios": ratios}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(page, indent=2))
    print(json.dumps({"host": page["host"], "left_out": left_out, **ratios}, indent=2))


def cpu(rig: Rig, packages: Packages) -> dict[str, float]:
    """Processor time of INT8 over fp32 for 32 rows: the field's CNN, and MiniLM where it is here."""
    here = source(LARGER, rig.folder / "models")
    found = {"int8_cpu_over_fp32_batch32": ratio(build_on(rig, HOST, LARGER, here), here / "held.npz", rounds=60)}
    if ("minilm-topics", HOST.name) in packages:
        found["minilm_int8_cpu_over_fp32_batch32"] = ratio(*packages["minilm-topics", HOST.name], rounds=5)
    return found


def ratio(folder: Path, held: Path, rounds: int) -> float:
    """INT8 as a spoke here would serve it, over fp32 likewise."""
    inputs = read_rows(held).inputs
    best = times(served(folder), {n: np.ascontiguousarray(a) for n, a in inputs.items()}, 32, rounds)
    return round(best["int8"] / best["fp32"], 4)


def served(folder: Path) -> dict[str, Session]:
    """The session that a spoke on this machine chooses, by precision."""
    spec, golden = PackageSpec.parse((folder / SPEC).read_bytes()), read_golden(folder / GOLDEN)
    found = {}
    for variant in spec.variants:
        way = choose_engine(folder / variant.main, candidates(variant.requires.engines), golden, variant.name)
        found[variant.precision] = open_session(folder / variant.main, engine=way.engine, mode=way.mode)
    return found


if __name__ == "__main__":
    main()

"""What every class of CPU makes of every example package, and the figures of it."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from tests.cpus.machines import HOST, X86, Machine
from tests.cpus.probe import Seen, probe
from tests.cpus.rig import Rig
from tests.cpus.sources import MODELS, build_on, fetch_minilm, source

__all__ = ["Packages", "Row", "builds", "cross_build_equal", "figures", "measure", "table"]

ROWS = {"minilm-topics": 120}
"""Held-out rows that are scored; all where a model is not named. An emulated AVX2 takes seconds for one text."""
CROSS = ("digits", "breast-cancer")
"""Models that are built on the x86 classes as well; MiniLM would take an emulated one an hour."""


Packages = Mapping[tuple[str, str], tuple[Path, Path]]
"""The folder and the held-out rows, by model and the class that built it."""


class Row(Struct, frozen=True):
    """One way to run one variant of one package on one class."""

    model: str
    built_on: str
    machine: str
    seen: Seen

    def __str__(self) -> str:
        """A line of the table."""
        seen = self.seen
        what = f"{self.model:14} of {self.built_on:5} on {self.machine:9} {seen.variant:13} {seen.engine:11} {seen.mode:5}"
        return f"{what} {seen.error[:90]}" if seen.error else f"{what} {seen.worst:10.4f} {seen.score:.4f}"


def builds(rig: Rig, say: Callable[[str], None] = print) -> Packages:
    """Packages to measure; built where they are not there for this code."""
    models = [m for m in MODELS if m != "minilm-topics" or fetch_minilm(say)]
    found = {}
    for model in models:
        here = source(model, rig.folder / "models")
        for machine in (HOST, *(m for m in X86 if model in CROSS and not rig.lacks(m))):
            say(f"build: {model} on {machine.name}")
            found[model, machine.name] = (build_on(rig, machine, model, here), here / "held.npz")
    return found


def measure(rig: Rig, machines: Sequence[Machine], packages: Packages, say: Callable[[str], None] = print) -> list[Row]:
    """All packages on all classes, as many at once as there are cores. MiniLM's floats take an emulator hours."""

    def one(job: tuple[tuple[str, str], Machine]) -> list[Row]:
        (model, built_on), machine = job
        folder, held = packages[model, built_on]
        skip = ("fp32", "openvino") if model == "minilm-topics" and machine != HOST else ()
        found = probe(rig, machine, folder, held, limit=ROWS.get(model, 0), skip=skip)
        rows = [Row(model, built_on, machine.name, seen) for seen in found]
        say("\n".join(map(str, rows)))
        return rows

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for rows in pool.map(one, itertools.product(packages, machines)) for row in rows]


def figures(rows: Iterable[Row]) -> dict[str, float]:
    """By class: the largest deviation, and the largest loss from the host's fp32, over all ways that a spoke there may serve."""
    rows = list(rows)
    found: dict[str, float] = {}
    for machine in dict.fromkeys(r.machine for r in rows):
        groups = _groups(r for r in rows if r.machine == machine)
        served = {key: _served(group) for key, group in groups.items()}
        full = {key: _host_float(rows, key) for key in served}
        found[f"golden_worst_over_tolerance_{machine}"] = max(s.worst or 0.0 for ways in served.values() for s in ways)
        found[f"int8_accuracy_drop_{machine}"] = max(full[key] - (s.score or 0.0) for key, ways in served.items() for s in ways)
    return {name: round(value, 4) for name, value in found.items()}


def cross_build_equal(packages: Packages) -> int:
    """1 when the golden files of each model are the same bytes whatever class built them."""
    bytes_of: dict[str, set[bytes]] = {}
    for (model, _), (folder, _rows) in packages.items():
        bytes_of.setdefault(model, set()).add((folder / "golden.npz").read_bytes())
    return int(all(len(found) == 1 for found in bytes_of.values()))


def table(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The same as plain values."""
    return [{"model": r.model, "built_on": r.built_on, "class": r.machine, **msgspec.to_builtins(r.seen)} for r in rows]


def _groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Seen]]:
    groups: dict[tuple[str, str], list[Seen]] = {}
    for row in rows:
        groups.setdefault((row.model, row.built_on), []).append(row.seen)
    return groups


def _served(ways: Sequence[Seen]) -> list[Seen]:
    """INT8 ways that agree, else any that agree (fp32 serves there), else the one least off: the package is not served there."""
    agreeing = [way for way in ways if way.agrees]
    ran = [way for way in ways if way.worst is not None]
    return [w for w in agreeing if w.precision == "int8"] or agreeing or [min(ran, key=lambda way: way.worst or 0.0)]


def _host_float(rows: Iterable[Row], package: tuple[str, str]) -> float:
    own = (r for r in rows if (r.model, r.built_on, r.machine) == (*package, HOST.name))
    return max(r.seen.score or 0.0 for r in own if r.seen.precision == "fp32")

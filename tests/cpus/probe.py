"""Every way to run every variant of a package, on the CPU at hand or on a class of the rig.

`python -m tests.cpus.probe FOLDER ROWS LIMIT NUMBER...` is the part inside a class: it needs what a spoke has and nothing more,
and prints a line of JSON for each way that is asked for.
"""

import sys
from collections.abc import Collection
from pathlib import Path

import msgspec
from msgspec import Struct

from model_formats.build.dataset import Rows, read_rows
from model_formats.build.scoring import predict, score
from model_formats.core.cpu_class import this_class
from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Candidate, candidates
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import CONTRACT, GOLDEN, SPEC, PackageSpec, VariantSpec
from model_formats.package.golden import Golden, check_golden, read_golden
from model_formats.runtimes.select import open_session
from tests.cpus.machines import Machine
from tests.cpus.rig import Rig, RunEnded

__all__ = ["Seen", "probe"]

Way = tuple[VariantSpec, Candidate]


class Seen(Struct, frozen=True):
    """One way to run one variant on one CPU."""

    variant: str
    precision: str
    engine: str
    mode: str
    cpu_class: str = ""
    worst: float | None = None
    """Largest deviation from the golden outputs, in units of what is allowed."""
    score: float | None = None
    """On the rows that it was asked for."""
    error: str = ""

    @property
    def agrees(self) -> bool:
        """It gives the golden outputs."""
        return self.worst is not None and self.worst <= 1


def probe(rig: Rig, machine: Machine, folder: Path, rows: Path, *, limit: int = 0, skip: Collection[str] = ()) -> list[Seen]:
    """All ways on a class of CPU but those of a precision or engine in `skip`, scored on the first `limit` rows (0: all).

    One that ends its process costs only itself.
    """
    numbers = [n for n, (variant, way) in enumerate(ways(folder)) if not {variant.precision, way.engine} & set(skip)]
    try:
        return _asked(rig, machine, folder, rows, limit, *numbers)
    except RunEnded:
        return [_alone(rig, machine, folder, rows, limit, number) for number in numbers]


def ways(folder: Path) -> list[Way]:
    """Every variant with every way to run it, as a spoke tries them; fp32 has no INT8 products that a mode could change."""
    spec = PackageSpec.parse((folder / SPEC).read_bytes())
    found = [(variant, way) for variant in spec.variants for way in candidates(variant.requires.engines)]
    return [(variant, way) for variant, way in found if way.mode == "fast" or variant.precision != "fp32"]


def _alone(rig: Rig, machine: Machine, folder: Path, rows: Path, limit: int, number: int) -> Seen:
    try:
        return _asked(rig, machine, folder, rows, limit, number)[0]
    except RunEnded as e:
        variant, way = ways(folder)[number]
        return Seen(variant.name, variant.precision, way.engine, way.mode, error=str(e).partition("\n")[0])


def _asked(rig: Rig, machine: Machine, folder: Path, rows: Path, limit: int, *numbers: int) -> list[Seen]:
    printed = rig.run(machine, "-m", "tests.cpus.probe", folder, rows, limit, *numbers)
    return [msgspec.json.decode(line, type=Seen) for line in printed.splitlines() if line.startswith("{")]


def _try(folder: Path, way: Way, rows: Rows) -> Seen:
    variant, candidate = way
    contract, golden = FeatureContract.parse((folder / CONTRACT).read_bytes()), read_golden(folder / GOLDEN)
    seen = Seen(variant.name, variant.precision, candidate.engine, candidate.mode, this_class())
    try:
        worst, share = _measure(folder / variant.main, candidate, contract, golden, variant.name, rows)
    except SpokeshaveError as e:
        return msgspec.structs.replace(seen, error=e.message)
    return msgspec.structs.replace(seen, worst=worst, score=share)


def _measure(
    file: Path, way: Candidate, contract: FeatureContract, golden: Golden, variant: str, rows: Rows
) -> tuple[float, float]:
    session = open_session(file, engine=way.engine, mode=way.mode)
    output = contract.outputs[0].name
    worst = check_golden(session, golden, variant).worst
    return worst, score(contract.task, predict(session, rows.inputs, [output])[output], rows.labels)


def main(folder: Path, rows_file: Path, limit: int, numbers: list[int]) -> None:
    """A line for each way."""
    rows = read_rows(rows_file)
    rows = rows.take(slice(0, limit or len(rows)))
    for number in numbers:
        print(msgspec.json.encode(_try(folder, ways(folder)[number], rows)).decode(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), [int(n) for n in sys.argv[4:]])

"""A sample of `make cpus`: digits, built on the host and on an SSE4.2 CPU, on every x86 class."""

from pathlib import Path

import pytest

from tests.cpus.machines import HOST, X86, Machine
from tests.cpus.probe import Seen, probe
from tests.cpus.rig import Rig
from tests.cpus.sources import build_on, source

pytestmark = [pytest.mark.xdist_group("cpus"), pytest.mark.slow, pytest.mark.timeout(900)]
SSE42, AVX2 = X86
BUILDERS = {"host": HOST, "sse42": SSE42}
WAYS = [(SSE42, "host"), (AVX2, "sse42"), (HOST, "sse42")]


@pytest.fixture(scope="module")
def rig() -> Rig:
    rig = Rig()
    for machine in X86:
        if why := rig.lacks(machine):
            pytest.skip(why)
    return rig


@pytest.fixture(scope="module")
def trained(rig: Rig) -> Path:
    return source("digits", rig.folder / "models")


@pytest.fixture(scope="module")
def packages(rig: Rig, trained: Path) -> dict[str, Path]:
    return {name: build_on(rig, machine, "digits", trained) for name, machine in BUILDERS.items()}


def test_golden_files_of_two_classes_are_the_same_bytes(packages: dict[str, Path]) -> None:
    host, other = (folder / "golden.npz" for folder in packages.values())
    assert host.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(("machine", "built_on"), WAYS, ids=lambda one: getattr(one, "name", one))
def test_int8_is_served_and_as_good_as_where_it_was_built(
    machine: Machine, built_on: str, rig: Rig, trained: Path, packages: dict[str, Path]
) -> None:
    here = probe(rig, HOST, packages[built_on], trained / "held.npz", skip=["int8"])
    there = probe(rig, machine, packages[built_on], trained / "held.npz", skip=["fp32"])
    full = max(way.score or 0 for way in here)
    agreeing = [way for way in there if way.agrees]
    assert machine == HOST or {way.cpu_class for way in there if not way.error} == {machine.name}
    assert agreeing, [_line(way) for way in there]
    assert min(way.score or 0 for way in agreeing) >= full - 0.01


def test_fp32_agrees_on_avx2(rig: Rig, trained: Path, packages: dict[str, Path]) -> None:
    there = probe(rig, AVX2, packages["host"], trained / "held.npz", limit=1, skip=["int8"])
    assert there
    assert all(way.agrees for way in there), [_line(way) for way in there]


def _line(way: Seen) -> str:
    return f"{way.variant} {way.engine} {way.mode}: {way.error or way.worst}"

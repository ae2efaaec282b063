"""The table of ADR 6 and what lies installed say the same: who could call, and who speaks of telemetry."""

import importlib
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.network.inventory import STATIC, Found, calls_of, inventory

PAGE = Path(__file__).parents[2] / "docs" / "adr" / "0006-nothing-phones-home.md"
WHAT_TO_DO = (
    "Read what it sends by itself, when, and how that is switched off; switch it off in model_formats/core/telemetry_off.py or "
    f"do without that version; then say so in the table of docs/adr/{PAGE.name}. See: python -m tests.network.inventory"
)


class Row(NamedTuple):
    """A row of the table: patterns of the binaries that can call, and the marks of telemetry."""

    binaries: frozenset[str]
    marks: frozenset[str]


def known() -> dict[str, Row]:
    """The table of the page, by distribution (`nvidia-*` stands for many)."""
    rows: dict[str, Row] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            names, binaries, marks = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:4])
            rows |= {name: Row(frozenset(binaries), frozenset(marks)) for name in names}
    return rows


def differences(found: dict[str, Found], rows: dict[str, Row]) -> Iterator[str]:
    """A line for each thing that is installed and not in the table, or in the table and gone from what is installed."""
    for name, has in found.items():
        row = next((row for pattern, row in rows.items() if fnmatch(name, pattern)), Row(frozenset(), frozenset()))
        for binary, calls in has.callers.items():
            if not any(fnmatch(binary, pattern) for pattern in row.binaries):
                yield f"{name} can call, and the table does not know it: {binary} ({', '.join(sorted(calls))})"
        for mark in sorted(has.marks.keys() - row.marks):
            yield f"{name} speaks of {mark}, and the table does not know it: {', '.join(sorted(has.marks[mark])[:4])}"
        for mark in sorted(row.marks - has.marks.keys()):
            yield f"{name} no longer speaks of {mark}, and the table says so"
        if row.binaries and not has.callers:
            yield f"{name} can no longer call, and the table says so"


def test_the_table_of_adr_6_is_what_is_installed() -> None:
    found = list(differences(inventory(), known()))
    assert not found, "\n".join([*found, WHAT_TO_DO])


def test_a_distribution_that_newly_can_call_is_named_with_its_file(tmp_path: Path) -> None:
    _install(tmp_path, "fast-maths", "fast_maths/engine.so", _program_with_sockets())

    (line,) = differences(inventory(tmp_path), known())

    assert "fast-maths can call" in line
    assert "fast_maths/engine.so" in line
    assert "connect" in line


def test_a_collector_in_python_is_named_with_its_file(tmp_path: Path) -> None:
    sender = tmp_path / "sender.py"
    sender.write_text('URL = "https://www.google-analytics.com/collect"\n')
    _install(tmp_path, "fast-maths", "fast_maths/usage.py", sender)

    (line,) = differences(inventory(tmp_path), known())

    assert line.endswith("the table does not know it: fast_maths/usage.py")
    assert "fast-maths speaks of google-analytics.com" in line


def test_an_engine_that_begins_to_call_is_not_excused_by_its_row(tmp_path: Path) -> None:
    assert known()["onnxruntime"].binaries == frozenset()
    _install(tmp_path, "onnxruntime", "onnxruntime/capi/libonnxruntime.so.9", _program_with_sockets())

    assert any("onnxruntime can call" in line for line in differences(inventory(tmp_path), known()))


def test_what_went_away_is_taken_from_the_table() -> None:
    rows = {"fast-maths": Row(frozenset({"fast_maths/*"}), frozenset({"sentry.io"}))}

    lines = list(differences({"fast-maths": Found({}, {})}, rows))

    assert [line.split(",")[0] for line in lines] == ["fast-maths no longer speaks of sentry.io", "fast-maths can no longer call"]


def test_a_binary_that_asks_for_names_and_connects_is_seen() -> None:
    assert {"getaddrinfo", "connect"} <= calls_of(_program_with_sockets())


def test_a_program_without_imports_is_no_program_without_calls(tmp_path: Path) -> None:
    program = tmp_path / "static"
    program.write_bytes(
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0)
    )

    assert calls_of(program) == {STATIC}


def test_text_is_no_program(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("connect getaddrinfo\n")

    assert calls_of(text) == frozenset()


def _program_with_sockets() -> Path:
    """Python's own module of sockets, or the interpreter that has it built in."""
    if not sys.platform.startswith("linux"):
        pytest.skip("binaries here are not ELF files")
    own = getattr(importlib.import_module("_socket"), "__file__", None)
    return Path(own) if own else Path(sys.executable).resolve()


def _install(folder: Path, dist: str, name: str, file: Path) -> None:
    """Lay a file into a folder as pip would."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / name)
    info = folder / f"{dist}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{name},,\n")

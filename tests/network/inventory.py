"""What the installed distributions can call, read from their files: imported network functions, and marks of telemetry.

It opens every file that a distribution's RECORD lists and that can be a program or Python. Of a binary it reads the symbol table
and the constants, of Python the text, and it runs neither. It does not see calls by number (`syscall`), libraries opened by name
at run time (`dlopen`), or Python that sends to a host unknown here: the recorder at the kernel sees those.

`python -m tests.network.inventory [FOLDER]` prints what is found in this environment, or in a folder that
`pip install --target FOLDER` filled.
"""

import csv
import mmap
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

__all__ = ["STATIC", "Found", "calls_of", "inventory"]

CALLS: Final = re.compile(
    r"connect|send(to|msg|mmsg)|getaddrinfo(_a)?|gethostbyname2?(_r)?|(__)?res_n?(query|search)|"
    r"(SSL|BIO_do)_connect|(gnutls|mbedtls_ssl)_handshake|curl_(easy|multi)_perform"
)
"""Functions that ask for a name, open a connection, or send to an address. `send` and `write` need a connection first."""

STATIC: Final = "static"
"""Said of a program that imports nothing: whether it calls cannot be read from its symbols."""

MARKS: Final = (
    "events.data.microsoft.com",
    "Applications6Events",  # the C++ namespace of Microsoft's 1DS client
    "applicationinsights",
    "google-analytics.com",
    "app-measurement.com",
    "sentry.io",
    "posthog",
    "segment.io",
    "amplitude.com",
    "mixpanel.com",
    "bugsnag.com",
    "rollbar.com",
    "datadoghq",
    "nr-data.net",
    "honeycomb.io",
    "scarf.sh",
    "wandb.ai",
    "OTEL_EXPORTER_OTLP",
    "DISABLE_TELEMETRY",  # a switch to turn it off says that there is something to turn off
    "NO_TELEMETRY",
    "TELEMETRY_OPT",
    "DISABLE_ANALYTICS",
    "DO_NOT_TRACK",
)
"""Hosts of collectors, names in clients, and the names of switches that turn telemetry off."""

TELEMETRY_FILE: Final = re.compile(r"(?<![a-z])telemetry(?![a-z])")
"""A Python file or folder called telemetry; `opentelemetry`, an interface without a sender, is another word."""

_NO_PROGRAM = re.compile(
    r"\.(pyc|pyi|h|hpp|hxx|cuh|c|cc|cpp|cu|txt|md|rst|json|html|css|js|ts|svg|png|npz|npy|csv|gz|pem|cmake|proto|pxd|pyx|pxi|yaml|"
    r"yml|toml|typed|in|mo|a|jinja|xml|inc|def|tcl)$|\.dist-info/"
)
_PROGBITS, _DYNSYM, _ALLOCATED, _CODE = 1, 11, 2, 4
_RELOCATABLE = 1


@dataclass(frozen=True, slots=True)
class Found:
    """What one distribution holds: binaries that can call, with the functions they import, and marks with the files."""

    callers: dict[str, frozenset[str]]
    marks: dict[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class _Section:
    """One section of an ELF file: its bytes' place, what it is, and the section it refers to."""

    kind: int
    flags: int
    start: int
    size: int
    link: int


class _Elf:
    """The parts of a 64-bit little-endian ELF file that say what it imports and what constants it holds."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        (self.kind,) = struct.unpack_from("<H", data, 16)
        (at,) = struct.unpack_from("<Q", data, 40)
        (count,) = struct.unpack_from("<H", data, 60)
        rows = struct.iter_unpack("<4xIQ8xQQI20x", data[at : at + 64 * count])
        self.sections = [_Section(*row) for row in rows]

    def imports(self) -> frozenset[str] | None:
        """Functions that match `CALLS` and that the file leaves to other libraries; None where it has no table of such names."""
        table = next((s for s in self.sections if s.kind == _DYNSYM), None)
        if table is None:
            return None
        names = self._bytes(self.sections[table.link])
        undefined = (name for name, where in struct.iter_unpack("<I2xH16x", self._bytes(table)) if where == 0)
        imported = (names[n : names.find(b"\0", n)].decode() for n in undefined)
        return frozenset(name for name in imported if CALLS.fullmatch(name))

    def constants(self) -> Iterator[bytes]:
        """Sections with strings: loaded, and not code."""
        for section in self.sections:
            if section.kind == _PROGBITS and section.flags & _ALLOCATED and not section.flags & _CODE:
                yield self._bytes(section)

    def _bytes(self, section: _Section) -> bytes:
        return self.data[section.start : section.start + section.size]


def calls_of(path: Path) -> frozenset[str]:
    """Network functions that a binary imports, `STATIC` for a program without imports, nothing for any other file."""
    return _read_binary(path)[0]


def inventory(folder: Path | None = None) -> dict[str, Found]:
    """What each distribution of this environment, or of a folder, holds, by its normalized name."""
    installed = distributions() if folder is None else distributions(path=[str(folder)])
    first = {re.sub(r"[-_.]+", "-", str(dist.name)).lower(): dist for dist in reversed(list(installed))}  # as an import finds it
    return {name: _read(dist) for name, dist in first.items()}


def _read(dist: Distribution) -> Found:
    callers: dict[str, frozenset[str]] = {}
    marks: dict[str, set[str]] = {}
    for name, path in _files(dist):
        calls, marked = _read_python(name, path) if path.suffix == ".py" else _read_binary(path)
        if calls:
            callers[name] = calls
        for mark in marked:
            marks.setdefault(mark, set()).add(name)
    return Found(callers, {mark: frozenset(files) for mark, files in marks.items()})


def _files(dist: Distribution) -> Iterator[tuple[str, Path]]:
    """Names and places of files that can be programs or Python. A program in `bin` lies outside the packages' folder."""
    root = Path(str(dist.locate_file("")))
    for name, *_ in csv.reader((dist.read_text("RECORD") or "").splitlines()):
        if not _NO_PROGRAM.search(name) and (path := root / name).is_file():
            yield re.sub(r"^(\.\./)+", "", name), path


def _read_python(name: str, path: Path) -> tuple[frozenset[str], list[str]]:
    text = path.read_bytes()
    marks = [mark for mark in MARKS if mark.encode() in text]
    return frozenset(), [*marks, "telemetry"] if TELEMETRY_FILE.search(name) else marks


def _read_binary(path: Path) -> tuple[frozenset[str], list[str]]:
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return frozenset(), []
        if file.read(2) != b"\x02\x01":
            return frozenset({STATIC}), []  # 32-bit or big-endian, which this does not read
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            elf = _Elf(data)
            imports = elf.imports()
            if imports is None:
                return frozenset({STATIC} if elf.kind != _RELOCATABLE else ()), []
            return imports, [mark for mark in MARKS if imports and any(mark.encode() in text for text in elf.constants())]


def _main(folder: Path | None) -> None:
    for name, found in sorted(inventory(folder).items()):
        if found.callers or found.marks:
            print(name)
        for binary, calls in found.callers.items():
            print(f"  {binary}: {' '.join(sorted(calls))}")
        for mark, files in found.marks.items():
            print(f"  says {mark}: {' '.join(sorted(files))}")


if __name__ == "__main__":
    _main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

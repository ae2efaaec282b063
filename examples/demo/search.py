"""Plants unique values into rows, and looks for them in bytes that left: as text, as numbers, and inside base64 and zlib."""

import base64
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")


def planted_rows(images: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], list[float]]:
    """A copy in which one pixel of each row holds a value that occurs nowhere else, and those values."""
    rows = images.copy()
    steps = (np.arange(len(rows)) * 7919 + 5003) % 100_003
    marks = [float(m) for m in np.float32(3 + steps / 100_003 * 9) if len(f"{m:.6g}") >= 6]
    marks = (marks * 2)[: len(rows)]  # a value that is short as text would be found by chance: another takes its place
    rows.reshape(len(rows), -1)[:, 27] = marks
    return rows, marks


def search(files: Iterable[Path], marks: list[float]) -> tuple[list[str], int]:
    """Every planted value that occurs in the files (file, form, value), and how many bytes were read."""
    found, size = [], 0
    needles = {needle: f"{form} {mark!r}" for mark in marks for form, needle in forms(mark)}
    pattern = re.compile(b"|".join(map(re.escape, needles)))
    for file in files:
        data = file.read_bytes()
        size += len(data)
        for text in readings(data):
            found += [f"{file.name}: {needles[hit.group()]}" for hit in pattern.finditer(text)]
    return found, size


def forms(mark: float) -> Iterator[tuple[str, bytes]]:
    """How a value could be written down."""
    yield "float32", struct.pack("<f", mark)
    yield "float32 big-endian", struct.pack(">f", mark)
    yield "float64", struct.pack("<d", mark)
    yield "text", f"{mark:.6g}".encode()


def readings(data: bytes, depth: int = 3) -> Iterator[bytes]:
    """The bytes, and whatever is encoded or packed inside them."""
    yield data
    if depth == 0:
        return
    for match in _BASE64.finditer(data):
        text = match.group().replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
        yield from readings(
            base64.b64decode(text + b"=" * (-len(text) % 4), validate=False) if len(text) % 4 != 1 else b"", depth - 1
        )
    for start in (m.start() for m in re.finditer(b"\x78[\x01\x9c\xda]", data)):
        try:
            inner = zlib.decompressobj().decompress(data[start:], 1 << 24)
        except zlib.error:
            continue
        yield from readings(inner, depth - 1)

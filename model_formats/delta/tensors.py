"""Where the tensors of an ONNX file lie, byte by byte. Only the encoder needs this: a delta names byte ranges.

A few fields of the protobuf schema of ONNX are walked by hand, since its library does not tell offsets. A file that is not ONNX
has no tensors, which is no error.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Tensor", "tensors_of"]

WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 4, 9: 1, 10: 2, 11: 4, 12: 4, 13: 4, 16: 2}
"""TensorProto.DataType -> width of the integers to take differences of (8-byte types as two of 4)."""
GRAPH, INITIALIZER, DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA = 7, 5, 1, 2, 4, 8, 9
PACKED = 8
"""Shorter values are one number, not a packed list."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An initializer's raw bytes in a file."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    offset: int
    size: int

    @property
    def width(self) -> int:
        """Bytes of the integers whose differences are small."""
        return WIDTHS.get(self.data_type, 1)

    @property
    def like(self) -> tuple[str, int, tuple[int, ...]]:
        """Tensors that may be subtracted from each other have equal likes."""
        return self.name, self.data_type, self.dims


def tensors_of(path: Path) -> list[Tensor]:
    """All initializers with raw data, in file order; empty when the file is not ONNX."""
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            found = [
                tensor
                for number, start, end in _fields(data, 0, len(data))
                if number == GRAPH
                for inner, a, b in _fields(data, start, end)
                if inner == INITIALIZER and (tensor := _tensor(data, a, b))
            ]
        except (ValueError, IndexError, UnicodeDecodeError):
            return []
    return found


def _tensor(data: mmap.mmap, start: int, end: int) -> Tensor | None:
    dims: list[int] = []
    kind, name, raw = 0, "", None
    for number, a, b in _fields(data, start, end):
        if number == DIMS:
            dims += _varints(data, a, b)
        elif number == DATA_TYPE:
            kind = _varint(data, a)[0]
        elif number == NAME:
            name = data[a:b].decode()
        elif number == RAW_DATA or (number == FLOAT_DATA and b - a >= PACKED):
            raw = (a, b - a)
    return Tensor(name, kind, tuple(dims), *raw) if raw and raw[1] else None


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, and where its value begins and ends. Raises ValueError on what is not protobuf."""
    at = start
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            stop = _varint(data, at)[1]
        elif kind == 2:
            size, at = _varint(data, at)
            stop = at + size
        elif kind in (1, 5):
            stop = at + (8 if kind == 1 else 4)
        else:
            raise ValueError("not protobuf")
        if number == 0 or stop > end:
            raise ValueError("not protobuf")
        yield number, at, stop
        at = stop


def _varints(data: mmap.mmap, at: int, end: int) -> list[int]:
    found = []
    while at < end:
        value, at = _varint(data, at)
        found.append(value)
    return found


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("not protobuf")

"""Make a delta between two model files. The hub does this once per version and base; it may take memory of a few times 64 MiB.

`strong` codes int8 tensors by the range coder and the rest by zstd's best levels; `fast` does without the coder and takes zstd
level 3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from model_formats.core.files import atomic_file
from model_formats.core.runtime import Array
from model_formats.delta.format import (
    CHUNK,
    END,
    HEADER,
    LENGTH,
    MAGIC,
    MODEL,
    MODEL_HEAD,
    PREFIX_BYTES,
    SEGMENT,
    VERSION,
    pack_numbers,
    prior,
    zstd,
)
from model_formats.delta.grid import SIZES, UNCHANGED, classes, contexts
from model_formats.delta.match import Files, match
from model_formats.delta.pieces import Kind, Piece, side_of
from model_formats.delta.planes import difference
from model_formats.delta.rans import encode as encode_lanes
from model_formats.delta.rans import frequencies, lanes_for

__all__ = ["Level", "encode"]

Level = Literal["fast", "strong"]

_SEGMENT = 2 << 20
_GROUP = 32
"""Segments that share one model of the coder: 64 MiB of target."""
_LEVELS: dict[Level, int] = {"fast": 3, "strong": 19}


def encode(base: Path, target: Path, out: Path, *, level: Level = "strong") -> int:
    """Write a delta to `out`; returns its size in bytes. It may be as large as the target: the planner decides."""
    files = Files(base, target)
    with atomic_file(out) as file:
        file.write(HEADER.pack(MAGIC, VERSION, len(files.target), len(files.base)))
        group: list[_Segment] = []
        for pieces in _segments(match(files, grids=level == "strong")):
            group.append(_segment(files, pieces, _LEVELS[level]))
            if len(group) == _GROUP:
                _write_group(file, group)
                group = []
        _write_group(file, group)
        file.write(CHUNK.pack(END, 0))
    return out.stat().st_size


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment on its way into the file: the parts that zstd made, and what the coder will code."""

    packed: bytes
    symbols: Array = field(repr=False)
    contexts: Array = field(repr=False)


def _segments(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Cut pieces so that a segment makes at most 2 MiB: grids between rows, integers between integers."""
    now: list[Piece] = []
    room = _SEGMENT
    for piece in pieces:
        start, unit = 0, piece.columns if piece.kind is Kind.GRID else piece.width
        while start < piece.length:
            fits = min(piece.length - start, room // unit * unit)
            if fits:
                now.append(piece.part(start, fits))
                start, room = start + fits, room - fits
            if start < piece.length or not room:
                if not now:
                    raise ValueError(f"a row of {unit} bytes is longer than a segment")
                yield now
                now, room = [], _SEGMENT
    if now:
        yield now


def _segment(files: Files, pieces: list[Piece], level: int) -> _Segment:
    residuals, literals = bytearray(), bytearray()
    final, symbols, found = [], [np.zeros(0, np.uint8)], [np.zeros(0, np.uint8)]
    for piece in pieces:
        new = files.new(piece)
        if piece.kind is Kind.LITERAL:
            literals += new
        elif piece.kind is Kind.BYTES:
            residuals += difference(files.old(piece), new, piece.width)
        elif piece.kind is Kind.GRID:
            piece, change = _measured(files, piece)
            symbols.append(change.reshape(-1))
            found.append(contexts(piece.row_sizes, piece.column_sizes, piece.columns).reshape(-1))
        final.append(piece)
    start, length = _prefix(files, pieces) if literals else (0, 0)
    parts = (
        _zip(pack_numbers(side_of(final, (start, length))), level),
        _zip(bytes(literals), level, files.base[start : start + length]),
        _zip(bytes(residuals), level),
    )
    return _Segment(b"".join(LENGTH.pack(len(p)) + p for p in parts), np.concatenate(symbols), np.concatenate(found))


def _measured(files: Files, piece: Piece) -> tuple[Piece, Array]:
    """A grid with its classes, and the differences of its changed rows."""
    old, new = (np.frombuffer(data, np.uint8).reshape(-1, piece.columns) for data in (files.old(piece), files.new(piece)))
    change = new - old
    rows, columns = classes(change.view(np.int8))
    return replace(piece, row_sizes=rows, column_sizes=columns), change[rows != UNCHANGED]


def _prefix(files: Files, pieces: list[Piece]) -> tuple[int, int]:
    """The part of the base that literals are compressed against: around the same place."""
    known = next((p for p in pieces if p.kind is not Kind.LITERAL), None)
    middle = known.base if known else pieces[0].target + _SEGMENT // 2
    start = max(0, min(middle - PREFIX_BYTES // 2, len(files.base) - PREFIX_BYTES))
    return start, min(PREFIX_BYTES, len(files.base) - start)


def _write_group(file: BinaryIO, group: list[_Segment]) -> None:
    total = sum(len(s.symbols) for s in group)
    lanes = lanes_for(total)
    coded = [(_padded(s.symbols, lanes), _padded(s.contexts, lanes)) for s in group]
    words: Sequence[Array] = [np.zeros(0, "<u2")] * len(group)
    if total:
        freqs = frequencies(_counts(coded))
        states, words = encode_lanes(coded, freqs, lanes)
        tables = _zip(pack_numbers(_table_numbers(freqs)), 19)
        _write_chunk(file, MODEL, MODEL_HEAD.pack(lanes, len(tables)) + tables + states.tobytes())
    for segment, own in zip(group, words, strict=True):
        _write_chunk(file, SEGMENT, segment.packed + own.tobytes())


def _counts(coded: list[tuple[Array, Array]]) -> Array:
    found = np.zeros(SIZES * 256, np.int64)
    for symbols, sizes in coded:
        found += np.bincount(sizes.astype(np.int32) * 256 + symbols, minlength=SIZES * 256)
    return found.reshape(SIZES, 256)


def _table_numbers(freqs: Array) -> list[int]:
    out: list[int] = []
    for row in freqs:
        symbols = np.flatnonzero(row)
        out += [len(symbols), *np.stack([symbols, row[symbols]], 1).reshape(-1).tolist()]
    return out


def _padded(values: Array, lanes: int) -> Array:
    """Filled up with zeros: context 0 knows only the symbol 0, which costs nothing."""
    return np.concatenate([values, np.zeros(-len(values) % lanes, np.uint8)])


def _write_chunk(file: BinaryIO, tag: bytes, data: bytes) -> None:
    file.write(CHUNK.pack(tag, len(data)) + data)


def _zip(data: bytes, level: int, prefix: bytes = b"") -> bytes:
    if not data:
        return b""
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: level, zstd.CompressionParameter.window_log: 24}
    older = prior(prefix)
    if older:
        options[zstd.CompressionParameter.enable_long_distance_matching] = 1
    return zstd.compress(data, options=options, zstd_dict=older)

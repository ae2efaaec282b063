"""Undo a delta. Everything in it is untrusted: sizes, offsets, streams; only the digest of the result counts.

Memory is a few segments, whatever the size of the model: about 40 MB above the interpreter and NumPy. No ONNX, no parser of
models.
"""

import contextlib
import hashlib
import secrets
from pathlib import Path
from typing import BinaryIO

import numpy as np

from model_formats.core.runtime import Array
from model_formats.delta.format import (
    END,
    HEADER,
    MAGIC,
    MODEL,
    MODEL_HEAD,
    PREFIX_BYTES,
    SEGMENT,
    SEGMENT_BYTES,
    SIDE_BYTES,
    VERSION,
    DeltaInvalid,
    DeltaLimits,
    Numbers,
    read_chunk,
    take_part,
    unzip,
)
from model_formats.delta.grid import SIZES, UNCHANGED, contexts
from model_formats.delta.pieces import Kind, Piece, read_pieces
from model_formats.delta.planes import restore
from model_formats.delta.rans import BITS, MAX_LANES, Decoder, table_of

__all__ = ["apply"]

_SAFE = DeltaLimits()


def apply(base: Path, delta: Path, out: Path, expected: str, limits: DeltaLimits = _SAFE) -> None:
    """Make the target file from `base` and `delta`, in bounded memory.

    `out` appears only when its digest is `expected`; on any error nothing is left. Raises DeltaInvalid.
    """
    # Under another name until the digest is right: a delta is untrusted, so is all that comes of it.
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with base.open("rb") as old, delta.open("rb") as patch, beside.open("xb") as new:
            digest = _Patch(old, base.stat().st_size, patch, new, limits).run()
        if digest != expected:
            raise DeltaInvalid(f"delta: it gives {digest}, not {expected} (a wrong base, or damage)")
        beside.replace(out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


class _Patch:
    """One run over the chunks of a delta."""

    def __init__(self, base: BinaryIO, base_size: int, patch: BinaryIO, out: BinaryIO, limits: DeltaLimits) -> None:
        self._base, self._base_size, self._patch, self._out, self._limits = base, base_size, patch, out, limits
        self._left = 0
        self._sha = hashlib.sha256()
        self._decoder: Decoder | None = None
        self._lanes = 1

    def run(self) -> str:
        """Write the target; returns its digest."""
        self._header()
        while True:
            tag, data = read_chunk(self._patch, self._limits.chunk)
            if tag == MODEL:
                self._model(data)
            elif tag == SEGMENT:
                self._segment(data)
            elif tag == END:
                break
            else:
                raise DeltaInvalid(f"delta: unknown chunk {tag!r}")
        if self._left or self._patch.read(1):
            raise DeltaInvalid(f"delta: {self._left} bytes are missing at its end, or something follows it")
        return "sha256:" + self._sha.hexdigest()

    def _header(self) -> None:
        data = self._patch.read(HEADER.size)
        if len(data) != HEADER.size:
            raise DeltaInvalid("delta: it is cut off")
        magic, version, target, base = HEADER.unpack(data)
        if (magic, version) != (MAGIC, VERSION):
            raise DeltaInvalid("delta: not a delta of this format")
        # Before anything is written: the header alone could claim to fill the disk.
        if target > self._limits.output:
            raise DeltaInvalid(f"delta: it claims {target} bytes, more than the {self._limits.output} allowed")
        if base != self._base_size:
            raise DeltaInvalid(f"delta: made for a base of {base} bytes, this one has {self._base_size}")
        self._left = target

    def _model(self, data: bytes) -> None:
        if len(data) < MODEL_HEAD.size:
            raise DeltaInvalid("delta: a model is cut off")
        lanes, count = MODEL_HEAD.unpack_from(data)
        at = MODEL_HEAD.size + count
        # Lanes decide how much memory the decoder takes.
        if not 1 <= lanes <= MAX_LANES or len(data) != at + 4 * lanes:
            raise DeltaInvalid(f"delta: a model with {lanes} lanes and {len(data)} bytes")
        table = table_of(_read_tables(unzip(data[MODEL_HEAD.size : at], SIDE_BYTES)))
        self._lanes, self._decoder = lanes, Decoder(table, np.frombuffer(data, "<u4", lanes, at))

    def _segment(self, data: bytes) -> None:
        packed, at = take_part(data, 0)
        side = Numbers(unzip(packed, SIDE_BYTES))
        # Literals are compressed against a part of the base (patch-from), which must be read before they can be.
        prefix = self._read_base(side.take(), side.take(), PREFIX_BYTES)
        pieces = read_pieces(side, self._base_size, self._left)
        packed, at = take_part(data, at)
        literals = unzip(packed, _total(pieces, Kind.LITERAL), prefix)
        packed, at = take_part(data, at)
        residuals = unzip(packed, _total(pieces, Kind.BYTES))
        if len(literals) != _total(pieces, Kind.LITERAL) or len(residuals) != _total(pieces, Kind.BYTES):
            raise DeltaInvalid("delta: a segment has too few bytes for its pieces")
        self._write(pieces, literals, residuals, self._symbols(pieces, data[at:]))

    def _symbols(self, pieces: list[Piece], data: bytes) -> Array:
        """The coded differences of all grids of a segment, one after the other."""
        grids = [p for p in pieces if p.kind is Kind.GRID]
        counts = [int(np.count_nonzero(p.row_sizes)) * p.columns for p in grids]
        if not sum(counts):
            return np.zeros(0, np.uint8)
        if self._decoder is None or len(data) % 2:
            raise DeltaInvalid("delta: a segment without a model for its coder, or cut off")
        index = np.zeros(-(-sum(counts) // self._lanes) * self._lanes, np.int32)
        at = 0
        for grid, count in zip(grids, counts, strict=True):
            index[at : at + count] = contexts(grid.row_sizes, grid.column_sizes, grid.columns).reshape(-1)
            at += count
        # The table is addressed by context and slot in one number; shifted once here, not at every step.
        index <<= BITS
        return self._decoder.decode(index, np.frombuffer(data, "<u2"))

    def _write(self, pieces: list[Piece], literals: bytes, residuals: bytes, symbols: Array) -> None:
        literal = residual = symbol = 0
        for piece in pieces:
            if piece.kind is Kind.LITERAL:
                self._emit(literals[literal : literal + piece.length])
                literal += piece.length
                continue
            old = self._read_base(piece.base, piece.length, SEGMENT_BYTES)
            if piece.kind is Kind.BYTES:
                old = restore(old, residuals[residual : residual + piece.length], piece.width)
                residual += piece.length
            elif piece.kind is Kind.GRID:
                count = int(np.count_nonzero(piece.row_sizes)) * piece.columns
                old = _add(old, piece, symbols[symbol : symbol + count])
                symbol += count
            self._emit(old)

    def _read_base(self, offset: int, length: int, limit: int) -> bytes:
        if length > limit or offset + length > self._base_size:
            raise DeltaInvalid("delta: it refers to bytes outside the base file")
        self._base.seek(offset)
        data = self._base.read(length)
        # The base is a file on this disk; it can be cut short while it is read.
        if len(data) != length:
            raise DeltaInvalid("delta: the base file became shorter")
        return data

    def _emit(self, data: bytes) -> None:
        self._left -= len(data)
        self._sha.update(data)
        self._out.write(data)


def _total(pieces: list[Piece], kind: Kind) -> int:
    return sum(p.length for p in pieces if p.kind is kind)


def _add(old: bytes, piece: Piece, symbols: Array) -> bytes:
    table = np.frombuffer(old, np.uint8).reshape(-1, piece.columns)
    live = piece.row_sizes != UNCHANGED
    change = symbols.reshape(-1, piece.columns)
    if live.all():
        return (table + change).tobytes()
    table = table.copy()
    table[live] += change
    return table.tobytes()


def _read_tables(data: bytes) -> Array:
    numbers, found = Numbers(data), np.zeros((SIZES, 256), np.int64)
    for context in range(SIZES):
        for _ in range(numbers.take()):
            symbol, frequency = numbers.take(), numbers.take()
            found[context, symbol & 255] = frequency
    return found

"""A segment as a list of pieces: what each makes, from where in the base, and its form in the side list.

COPY    length, base                          the base's bytes
BYTES   length, base, width 1|2|4             differences of integers of that width, in byte planes among the residuals
GRID    rows, columns, base, classes          differences of an int8 tensor, by the range coder (`grid.py`)
LITERAL length                                bytes of its own, compressed with a part of the base as zstd prefix
"""

from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from model_formats.core.runtime import Array
from model_formats.delta.format import SEGMENT_BYTES, DeltaInvalid, Numbers, zigzag
from model_formats.delta.grid import SIZES

__all__ = ["Kind", "Piece", "read_pieces", "side_of"]


class Kind(IntEnum):
    """How a piece is made."""

    COPY = 0
    BYTES = 1
    GRID = 2
    LITERAL = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """One run of target bytes. `base` is an offset in the base file (unused by literals)."""

    kind: Kind
    length: int
    base: int = 0
    target: int = 0
    """Offset in the target file; only the encoder knows it."""
    width: int = 1
    columns: int = 1
    """Row length of a grid; `length` is a multiple of it."""
    row_sizes: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    column_sizes: Array | None = None

    def part(self, start: int, length: int) -> "Piece":
        """A shorter piece, out of the middle (before classes are known)."""
        return replace(self, length=length, base=self.base + start, target=self.target + start)


def side_of(pieces: list[Piece], prefix: tuple[int, int]) -> list[int]:
    """The side list of a segment. `prefix` is offset and length of the base's part that literals refer to."""
    out, at = [*prefix], 0
    for piece in pieces:
        out += [piece.kind, piece.length]
        if piece.kind is Kind.LITERAL:
            continue
        out.append(zigzag(piece.base - at))
        at = piece.base + piece.length
        if piece.kind is Kind.BYTES:
            out.append(piece.width)
        if piece.kind is Kind.GRID:
            out += [piece.columns, *piece.row_sizes.tolist(), int(piece.column_sizes is not None)]
            out += [] if piece.column_sizes is None else piece.column_sizes.tolist()
    return out


def read_pieces(side: Numbers, base_size: int, left: int) -> list[Piece]:
    """Read pieces that together make at most a segment and at most `left` bytes. Raises DeltaInvalid."""
    out, at, room = [], 0, min(SEGMENT_BYTES, left)
    while side:
        piece = _read_piece(side, at, room)
        room -= piece.length
        if piece.kind is not Kind.LITERAL:
            at = piece.base + piece.length
            if piece.base < 0 or at > base_size:
                raise DeltaInvalid("delta: a piece lies outside the base file")
        out.append(piece)
    return out


def _read_piece(side: Numbers, at: int, room: int) -> Piece:
    kind, length = side.take(), side.take()
    if kind > Kind.LITERAL or length == 0 or length > room:
        raise DeltaInvalid("delta: a piece is too long, empty or of unknown kind")
    if kind == Kind.LITERAL:
        return Piece(Kind.LITERAL, length)
    base = at + side.signed()
    if kind == Kind.BYTES:
        width = side.take()
        if width not in (1, 2, 4) or length % width:
            raise DeltaInvalid(f"delta: integers of {width} bytes in a piece of {length}")
        return Piece(Kind.BYTES, length, base, width=width)
    return _read_grid(side, length, base) if kind == Kind.GRID else Piece(Kind.COPY, length, base)


def _read_grid(side: Numbers, length: int, base: int) -> Piece:
    columns = side.take()
    if columns == 0 or length % columns:
        raise DeltaInvalid(f"delta: rows of {columns} in a piece of {length}")
    rows = np.frombuffer(side.bytes(length // columns), np.uint8)
    widths = np.frombuffer(side.bytes(columns), np.uint8) if side.take() else None
    if max(rows.max(initial=0), 0 if widths is None else widths.max(initial=0)) >= SIZES:
        raise DeltaInvalid("delta: a class of change that does not exist")
    return Piece(Kind.GRID, length, base, columns=columns, row_sizes=rows, column_sizes=widths)

"""What of a target file comes from where in its base: tensors by name, type and shape; what lies between them by place.

Where a file is not ONNX, or a tensor has no older self, the bytes are literals, which zstd compresses against the base
(patch-from).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model_formats.delta.pieces import Kind, Piece
from model_formats.delta.tensors import Tensor, tensors_of

__all__ = ["Files", "match"]

_MIN_GRID = 4096
"""Smaller int8 tensors are not worth classes of their own."""
_MAX_ROW = 1 << 16
"""Rows are cut from each other only, so they must fit a segment, and their classes should be few beside them."""
_ROW = 256
"""Row length where the true shape is unknown."""
_SAMPLE = 1 << 20
"""Bytes looked at to see whether two files are aligned."""
_INT8 = (2, 3)
"""TensorProto.DataType of uint8 and int8."""


class Files:
    """Both files, mapped."""

    def __init__(self, base: Path, target: Path) -> None:
        self.base, self.target = _mapped(base), _mapped(target)
        self.base_tensors, self.target_tensors = tensors_of(base), tensors_of(target)

    def old(self, piece: Piece) -> bytes:
        """The base's bytes of a piece."""
        return self.base[piece.base : piece.base + piece.length]

    def new(self, piece: Piece) -> bytes:
        """The target's bytes of a piece."""
        return self.target[piece.target : piece.target + piece.length]


def match(files: Files, *, grids: bool) -> list[Piece]:
    """Pieces that make the whole target, in order. `grids`: int8 tensors for the range coder."""
    out: list[Piece] = []
    for piece in _pieces(files, grids=grids):
        if piece.length == 0:
            continue
        same = piece.kind is not Kind.LITERAL and files.old(piece) == files.new(piece)
        out.append(Piece(Kind.COPY, piece.length, piece.base, piece.target) if same else piece)
    return _merged(out)


def _pieces(files: Files, *, grids: bool) -> Iterator[Piece]:
    if not files.target_tensors and _aligned(files):
        yield from _as_one_tensor(len(files.target), grids=grids)
        return
    older = {t.like: t for t in files.base_tensors}
    target_at = base_at = 0
    for tensor in files.target_tensors:
        old = older.get(tensor.like)
        if old is None or old.size != tensor.size:
            continue
        yield _gap((base_at, old.offset), (target_at, tensor.offset))
        yield _tensor(old, tensor, grids=grids)
        target_at, base_at = tensor.offset + tensor.size, old.offset + old.size
    yield _gap((base_at, len(files.base)), (target_at, len(files.target)))


def _aligned(files: Files) -> bool:
    """Files of equal length where a quarter of the bytes stand still: weights without their graph (OpenVINO, external data)."""
    if len(files.base) != len(files.target) or not files.base:
        return False
    step = max(1, len(files.base) // _SAMPLE)
    old, new = (np.frombuffer(data, np.uint8)[::step] for data in (files.base, files.target))
    return float(np.mean(old == new)) > 0.25


def _as_one_tensor(length: int, *, grids: bool) -> Iterator[Piece]:
    whole = length // _ROW * _ROW if grids else 0
    yield Piece(Kind.GRID, whole, 0, 0, columns=_ROW)
    yield Piece(Kind.BYTES, length - whole, whole, whole)


def _gap(base: tuple[int, int], target: tuple[int, int]) -> Piece:
    length = target[1] - target[0]
    if base[1] - base[0] == length:
        return Piece(Kind.BYTES, length, base[0], target[0])
    return Piece(Kind.LITERAL, length, target=target[0])


def _tensor(old: Tensor, new: Tensor, *, grids: bool) -> Piece:
    columns = new.size // new.dims[0] if len(new.dims) > 1 and new.dims[0] else 0
    if grids and new.data_type in _INT8 and new.size >= _MIN_GRID and 16 <= columns <= _MAX_ROW and new.size % columns == 0:
        return Piece(Kind.GRID, new.size, old.offset, new.offset, columns=columns)
    return Piece(Kind.BYTES, new.size, old.offset, new.offset, width=new.width if new.size % new.width == 0 else 1)


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring copies, and neighbouring literals, as one."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if last and last.kind is piece.kind is Kind.COPY and last.base + last.length == piece.base:
            out[-1] = Piece(Kind.COPY, last.length + piece.length, last.base, last.target)
        elif last and last.kind is piece.kind is Kind.LITERAL:
            out[-1] = Piece(Kind.LITERAL, last.length + piece.length, target=last.target)
        else:
            out.append(piece)
    return out


def _mapped(path: Path) -> "mmap.mmap | bytes":
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""

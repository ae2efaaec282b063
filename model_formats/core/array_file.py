"""Named arrays on disk: the npz form, without pickles and with bounds.

A file is what `numpy.savez` writes (stored, fixed dates, names in order), so equal arrays give equal bytes. The reader
checks the number of members, their declared sizes and their types.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from model_formats.core.errors import RefusedError
from model_formats.core.runtime import Array

__all__ = ["ArraysRefused", "read_arrays", "write_arrays"]

_MAX_MEMBERS = 4096
_KINDS = frozenset("biufSU")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArraysRefused(RefusedError):
    """A file of arrays that is damaged, too large, or holds something other than plain numbers and text."""

    code = "arrays_invalid"
    http = 422
    hint = "Fetch or build the file again; nothing was read from it."


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays in name order, uncompressed. Equal arrays give equal bytes. Raises ArraysRefused on object arrays."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            # `ascontiguousarray` makes a scalar one-dimensional; the reshape gives it its shape back.
            array = np.ascontiguousarray(arrays[name]).reshape(np.shape(arrays[name]))
            if array.dtype.kind not in _KINDS:
                raise ArraysRefused(f"{path.name}: {name}: type {array.dtype} cannot be kept as plain numbers or text")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def read_arrays(path: Path, *, max_bytes: int = 64 << 20) -> dict[str, Array]:
    """Read all arrays; `max_bytes` bounds their sum in memory. Raises ArraysRefused that names the member and the rule."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_directory(path.name, members, max_bytes)
            return {m.filename.removesuffix(".npy"): _read(path.name, archive, m) for m in members}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, ValueError, RuntimeError, OSError) as e:
        raise ArraysRefused(f"{path.name}: not a readable file of arrays: {e}") from e


def _check_directory(file: str, members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    names = [m.filename for m in members]
    # A name twice: two readers could read two different arrays from one signed file.
    if len(members) > _MAX_MEMBERS or len(set(names)) != len(names):
        raise ArraysRefused(f"{file}: {len(members)} members, more than {_MAX_MEMBERS} or with a name twice")
    # Uncompressed only, so that sizes in the directory are the sizes in memory: no decompression bomb.
    if any(not name.endswith(".npy") or m.compress_type != zipfile.ZIP_STORED for name, m in zip(names, members, strict=True)):
        raise ArraysRefused(f"{file}: a member is compressed or not an array")
    if (total := sum(m.file_size for m in members)) > max_bytes:
        raise ArraysRefused(f"{file}: {total} bytes of arrays, more than the {max_bytes} allowed")


def _read(file: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream)
        size = math.prod(shape) * dtype.itemsize
        # Checked before anything is read: an object array would be a pickle, and a shape can claim any size.
        if dtype.kind not in _KINDS or size > member.file_size:
            raise ArraysRefused(
                f"{file}: {member.filename}: type {dtype} of shape {shape} is not allowed or does not fit the member"
            )
        data = stream.read()
    if len(data) != size:
        raise ArraysRefused(f"{file}: {member.filename}: {len(data)} bytes where shape {shape} needs {size}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"array format {version}")
    # NumPy parses the header as a Python literal; a long one costs time and memory.
    return _HEADERS[version](stream, max_header_size=4096)

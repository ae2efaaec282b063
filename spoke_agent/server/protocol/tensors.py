"""Tensors on the wire: the thirteen datatypes of the Open Inference Protocol v2, as JSON lists and as raw little-endian bytes.

BYTES elements are text inside (UTF-8): both engines know strings, neither knows bytes. Everything here judges untrusted input:
each function raises RequestInvalid with the tensor's name and the rule, never anything else, and takes no more memory than a
small multiple of the bytes that arrived.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np

from model_formats.core.runtime import Array
from spoke_agent.server_api.errors import RequestInvalid

__all__ = [
    "DTYPES",
    "MAX_DIMS",
    "count_of",
    "datatype_of",
    "floats_of",
    "from_binary",
    "from_json",
    "to_binary",
    "to_json",
]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_FLOATS: Final = frozenset({"FP16", "FP32", "FP64"})
_FLAT: Final = {"FP32": "f", "FP64": "d"}
_NUMBERS: Final = (float, int)
_LENGTH: Final = struct.Struct("<I")

MAX_DIMS: Final = 16


def datatype_of(array: Array) -> str:
    """The protocol's word for an array's element type; text and objects are BYTES."""
    return _NAMES.get(array.dtype, "BYTES")


def count_of(name: str, shape: object) -> tuple[tuple[int, ...], int]:
    """Check a shape (a list of whole numbers, none negative) and count its elements."""
    if type(shape) is not list or len(shape) > MAX_DIMS:
        raise RequestInvalid(f"input {name!r}: shape must be a list of at most {MAX_DIMS} whole numbers")
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise RequestInvalid(f"input {name!r}: shape {shape!r}: each size must be a whole number, 0 or more")
        count *= size
    return tuple(shape), count


def from_json(name: str, datatype: str, shape: tuple[int, ...], count: int, data: object) -> Array:
    """`data` of a JSON tensor, nested or flat in row-major order."""
    if type(data) is not list:
        raise RequestInvalid(f"input {name!r}: data must be a list")
    if datatype in _FLAT and len(data) == count:
        array = floats_of(datatype, shape, count)(data)
        if array is not None:
            return array
    if datatype == "BYTES":
        return _strings(name, shape, count, data)
    if datatype == "FP16":
        raise RequestInvalid(f"input {name!r}: FP16 has no JSON form; send it as a binary tensor")
    try:
        values: Array = np.array(data)
    except (ValueError, OverflowError, TypeError) as e:
        raise RequestInvalid(f"input {name!r}: data is not a regular list of {datatype}") from e
    _check_count(name, shape, count, values.size, "values")
    return _cast(name, datatype, values, data).reshape(shape)


@lru_cache(64)
def floats_of(datatype: str, shape: tuple[int, ...], count: int) -> Callable[[object], Array | None]:
    """`from_json` in the usual case, a flat list of FP32 or FP64: two to five times faster than asking NumPy what a list holds.

    None for what is to be judged the general way, and for all other datatypes.
    """
    if datatype not in _FLAT:
        return lambda _: None
    pack_into, dtype = struct.Struct(f"{count}{_FLAT[datatype]}").pack_into, DTYPES[datatype]

    def packed(data: object) -> Array | None:
        if type(data) is not list or len(data) != count or not data or type(data[0]) not in _NUMBERS:
            return None
        array = np.empty(shape, dtype)
        try:
            pack_into(array, 0, *data)  # type: ignore[arg-type] # a buffer; NumPy says so to mypy from Python 3.12 on
        except struct.error:
            return None
        return array

    return packed


def from_binary(name: str, datatype: str, shape: tuple[int, ...], count: int, raw: memoryview) -> Array:
    """Raw little-endian bytes of one tensor; the array is a read-only view where the type allows it."""
    if datatype == "BYTES":
        return _from_length_prefixed(name, shape, count, raw)
    dtype = DTYPES[datatype]
    if count * dtype.itemsize != len(raw):
        raise RequestInvalid(
            f"input {name!r}: {len(raw)} bytes, but shape {list(shape)} of {datatype} has {count * dtype.itemsize}"
        )
    if datatype == "BOOL" and len(raw) and np.frombuffer(raw, np.uint8).max() > 1:
        raise RequestInvalid(f"input {name!r}: BOOL bytes must be 0 or 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def to_binary(array: Array) -> bytes:
    """Raw little-endian bytes; BYTES elements each with their length before them."""
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    parts = [_as_bytes(item) for item in array.ravel().tolist()]
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def to_json(name: str, array: Array) -> object:
    """Flat values for orjson: the array itself where it can print it, a list otherwise."""
    kind = array.dtype.kind
    if kind == "f":
        if array.dtype.itemsize == 2:
            raise RequestInvalid(f"output {name!r}: FP16 has no JSON form; ask for it with binary_data")
        return array.ravel()
    if kind in "OSU":
        try:
            return [_as_bytes(item).decode() for item in array.ravel().tolist()]
        except UnicodeDecodeError as e:
            raise RequestInvalid(f"output {name!r}: not text; ask for it with binary_data") from e
    return array.reshape(-1).tolist()


def _cast(name: str, datatype: str, array: Array, data: list[object]) -> Array:
    kind, dtype = array.dtype.kind, DTYPES[datatype]
    if array.size == 0:
        return np.zeros(array.shape, dtype)
    if datatype in _FLOATS:
        if kind not in "fiu":
            raise RequestInvalid(f"input {name!r}: data must be numbers for {datatype}")
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    if datatype == "BOOL":
        if kind != "b":
            raise RequestInvalid(f"input {name!r}: data must be true or false for BOOL")
        return array
    if kind in "fO" and datatype in ("INT64", "UINT64"):
        return _wide(name, datatype, array, data)
    if kind not in "iu":
        raise RequestInvalid(f"input {name!r}: data must be whole numbers for {datatype}")
    bounds = np.iinfo(dtype)
    if array.min() < bounds.min or array.max() > bounds.max:
        raise RequestInvalid(f"input {name!r}: a value is outside {datatype} ({bounds.min}..{bounds.max})")
    return array.astype(dtype)


def _wide(name: str, datatype: str, array: Array, data: list[object]) -> Array:
    """Whole numbers that NumPy took for floats, because some are beyond int64."""
    exact = np.array(data, np.object_).ravel()
    bounds = np.iinfo(DTYPES[datatype])
    if exact.size != array.size or not all(type(v) is int and bounds.min <= v <= bounds.max for v in exact.tolist()):
        raise RequestInvalid(f"input {name!r}: data must be whole numbers for {datatype} ({bounds.min}..{bounds.max})")
    return exact.astype(DTYPES[datatype])


def _strings(name: str, shape: tuple[int, ...], count: int, data: list[object]) -> Array:
    flat: list[object] = data
    for _ in range(MAX_DIMS):
        if not any(type(item) is list for item in flat):
            break
        if not all(type(item) is list for item in flat):
            raise RequestInvalid(f"input {name!r}: data is not a regular list of strings")
        flat = [part for item in flat for part in item]  # type: ignore[attr-defined]
    if not all(type(item) is str for item in flat):
        raise RequestInvalid(f"input {name!r}: data must be strings for BYTES")
    _check_count(name, shape, count, len(flat), "strings")
    found = np.empty(count, np.object_)
    found[:] = flat
    return found.reshape(shape)


def _from_length_prefixed(name: str, shape: tuple[int, ...], count: int, raw: memoryview) -> Array:
    if count * _LENGTH.size > len(raw):
        raise RequestInvalid(f"input {name!r}: {len(raw)} bytes cannot hold {count} BYTES elements")
    starts = [0]
    for _ in range(count):
        at = starts[-1]
        if at + _LENGTH.size > len(raw):
            raise RequestInvalid(f"input {name!r}: ends inside the length of BYTES element {len(starts) - 1}")
        starts.append(at + _LENGTH.size + _LENGTH.unpack_from(raw, at)[0])
        if starts[-1] > len(raw):
            raise RequestInvalid(f"input {name!r}: BYTES element {len(starts) - 2} is longer than what arrived")
    if starts[-1] != len(raw):
        raise RequestInvalid(f"input {name!r}: {len(raw) - starts[-1]} bytes more than its {count} BYTES elements")
    found = np.empty(count, np.object_)
    try:
        found[:] = [str(raw[start + _LENGTH.size : end], "utf-8") for start, end in pairwise(starts)]
    except UnicodeDecodeError as e:
        raise RequestInvalid(f"input {name!r}: BYTES elements must be UTF-8 text: {e.reason} at byte {e.start}") from e
    return found.reshape(shape)


def _check_count(name: str, shape: tuple[int, ...], count: int, found: int, what: str) -> None:
    if found != count:
        raise RequestInvalid(f"input {name!r}: {found} {what}, but shape {list(shape)} has {count}")


def _as_bytes(item: object) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()

"""The delta file.

    "SPKDELTA" version:u8 target_size:u64 base_size:u64        little endian
    then chunks, tag:u8 length:u32 bytes:
      "M"  a model for the coder: lanes:u16 tables_length:u32 tables (zstd) states (4 bytes a lane)
      "S"  a segment of the target, at most 4 MiB: side, literals, residuals (length:u32 and a zstd frame each), then 16-bit words
      "E"  the end; nothing follows

A segment's side is a list of numbers (LEB128): for each piece its kind, and what that kind needs (`pieces.py`). Pieces stand in
the order of the target. Base offsets are relative to where the piece before ended, so they are mostly 0.
"""

import struct
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

from model_formats.core.errors import RefusedError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "END",
    "HEADER",
    "MAGIC",
    "MODEL",
    "SEGMENT",
    "VERSION",
    "DeltaInvalid",
    "DeltaLimits",
    "Numbers",
    "pack_numbers",
    "unzip",
    "zstd",
]

MAGIC = b"SPKDELTA"
VERSION = 1
HEADER = struct.Struct("<8sBQQ")
CHUNK = struct.Struct("<cI")
LENGTH = struct.Struct("<I")
MODEL_HEAD = struct.Struct("<HI")
MODEL, SEGMENT, END = b"M", b"S", b"E"

SEGMENT_BYTES = 4 << 20
"""Largest part of the target that one segment makes; the writer uses half."""
SIDE_BYTES = 4 << 20
PREFIX_BYTES = 8 << 20
"""Largest part of the base that literals may refer to (zstd's patch-from)."""


class DeltaInvalid(RefusedError):
    """A delta that is damaged, does not fit its base, claims too much, or does not give the signed file."""

    code = "delta_invalid"
    http = 422
    hint = "Nothing was kept; the whole file is fetched instead."


@dataclass(frozen=True, slots=True)
class DeltaLimits:
    """What a spoke lets a delta do, in bytes. Memory is bounded by the format itself."""

    output: int = 64 << 30
    chunk: int = 8 << 20


class Numbers:
    """Reads LEB128 numbers. Raises DeltaInvalid at the end and on numbers beyond 2^48."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self) -> int:
        """The next number."""
        value = shift = 0
        while True:
            if self._at >= len(self._data) or shift > 42:
                raise DeltaInvalid("delta: a list of numbers is damaged")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def signed(self) -> int:
        """The next number, zigzag."""
        value = self.take()
        return value >> 1 ^ -(value & 1)

    def bytes(self, count: int) -> bytes:
        """The next bytes as they are."""
        if count > len(self._data) - self._at:
            raise DeltaInvalid("delta: a list of numbers is damaged")
        self._at += count
        return self._data[self._at - count : self._at]


def pack_numbers(numbers: list[int]) -> bytes:
    """Write LEB128 numbers."""
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def zigzag(number: int) -> int:
    """Signed to unsigned, small to small."""
    return number << 1 if number >= 0 else (-number << 1) - 1


def prior(prefix: bytes) -> Any:
    """zstd's patch-from: the bytes that a frame may refer to. Fewer than eight are none."""
    return zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= 8 else None


def unzip(data: bytes, limit: int, prefix: bytes = b"") -> bytes:
    """Decompress one zstd frame that must not give more than `limit` bytes. Raises DeltaInvalid.

    Works in pieces and with a bounded window, so that a bomb costs no memory.
    """
    if not data:
        return b""
    try:
        reader = zstd.ZstdDecompressor(prior(prefix), options={zstd.DecompressionParameter.window_log_max: 24})
        out = reader.decompress(data, max_length=limit + 1)
        while not reader.eof and len(out) <= limit:
            more = reader.decompress(b"", max_length=limit + 1 - len(out))
            if not more and (reader.needs_input or reader.eof):
                break
            out += more
    except (zstd.ZstdError, EOFError, ValueError) as e:
        raise DeltaInvalid(f"delta: a compressed part is damaged: {e}") from e
    if len(out) > limit:
        raise DeltaInvalid(f"delta: a compressed part gives more than the {limit} bytes allowed")
    if not reader.eof or reader.unused_data:
        raise DeltaInvalid("delta: a compressed part is cut off or too long")
    return out


def read_chunk(file: BinaryIO, limit: int) -> tuple[bytes, bytes]:
    """The next chunk's tag and bytes. Raises DeltaInvalid."""
    head = file.read(CHUNK.size)
    if len(head) != CHUNK.size:
        raise DeltaInvalid("delta: it is cut off")
    tag, size = CHUNK.unpack(head)
    if size > limit:
        raise DeltaInvalid(f"delta: a chunk of {size} bytes, more than the {limit} allowed")
    data = file.read(size)
    if len(data) != size:
        raise DeltaInvalid("delta: it is cut off")
    return tag, data


def take_part(data: bytes, at: int) -> tuple[bytes, int]:
    """A length-prefixed part of a chunk, and where the next begins. Raises DeltaInvalid."""
    if at + LENGTH.size > len(data):
        raise DeltaInvalid("delta: a segment is cut off")
    (size,) = LENGTH.unpack_from(data, at)
    at += LENGTH.size
    if at + size > len(data):
        raise DeltaInvalid("delta: a segment is cut off")
    return data[at : at + size], at + size

"""What callers say again and again is read once: all of a request but its id and its raw tensors (its head) is remembered by its
bytes, and so is all of an answer but the same two.

Only the form that clients send is cut here: the id in its place, the raw tensors last. Anything else, damaged bytes among it, is
left to the whole parser (`codec.py`), so nothing is judged twice and nothing is judged here.
Source: protocol buffers' wire format; every field of ModelInferRequest is length-delimited.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["SplitMessage", "split_message", "field"]

_ID: Final = 3 << 3 | 2
_RAW: Final = 7 << 3 | 2
_SHORT: Final = 0x80
_LONGEST: Final = 1024


class SplitMessage(NamedTuple):
    """One message, cut up."""

    head: bytes
    """The bytes of all other fields."""
    id: bytes
    raws: list[bytes]


def split_message(data: bytes) -> SplitMessage | None:
    """The parts of a ModelInferRequest; None when it is not of the usual form."""
    at, end = 0, len(data)
    id_at = id_start = id_end = 0
    raw_at = end
    raws: list[bytes] = []
    while at < end:
        tag, start = data[at], at + 1
        if tag & 7 != 2 or start == end:
            return None
        size, start = data[start], start + 1
        if size >= _SHORT:
            size, start = _long(data, start - 1)
        stop = start + size
        if stop > end:
            return None
        if tag == _RAW:
            raw_at = at if not raws else raw_at
            raws.append(data[start:stop])
        elif raws or (tag == _ID and id_end) or tag >= _SHORT:
            return None
        elif tag == _ID:
            id_at, id_start, id_end = at, start, stop
        at = stop
    if not raws or raw_at - (id_end - id_at) > _LONGEST:
        return None
    return SplitMessage(data[:id_at] + data[id_end:raw_at], data[id_start:id_end], raws)


def field(number: int, values: Sequence[bytes]) -> bytes:
    """A length-delimited field, once for each value."""
    tag = bytes((number << 3 | 2,))
    return b"".join([part for value in values for part in (tag, _varint(len(value)), value)])


def _long(data: bytes, at: int) -> tuple[int, int]:
    """A varint of several bytes, and where it ends; one that never ends is longer than any message."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < _SHORT:
            return value, at
    return 1 << 62, at


def _varint(value: int) -> bytes:
    if value < _SHORT:
        return bytes((value,))
    found = bytearray()
    while value >= _SHORT:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)

"""Missing blocks as a bitmap, as `sync.protocol.messages.Want` carries it.

Law (tested with hypothesis): `decode(*encode(blocks)) == sorted(set(blocks))` for blocks that fit into one message.
"""

import base64
import binascii
from collections.abc import Iterable

__all__ = ["MAX_BITS", "decode", "encode"]

MAX_BITS = 24_000 // 4 * 3 * 8
"""Blocks that one bitmap can span: 18 GiB of 128 KiB blocks."""


def encode(blocks: Iterable[int]) -> tuple[int, str]:
    """(start, bitmap) for some blocks: most significant bit first, base64. What is `MAX_BITS` beyond the first is left out."""
    numbers = sorted(set(blocks))
    if not numbers:
        return 0, ""
    start = numbers[0]
    kept = [n - start for n in numbers if n - start < MAX_BITS]
    bits = bytearray(kept[-1] // 8 + 1)
    for n in kept:
        bits[n >> 3] |= 0x80 >> (n & 7)
    return start, base64.b64encode(bits).decode()


def decode(start: int, bitmap: str, *, blocks: int, limit: int) -> list[int]:
    """The first `limit` block numbers below `blocks` that a bitmap names, ascending. Raises ValueError when it is not one."""
    try:
        bits = base64.b64decode(bitmap, validate=True)
    except binascii.Error as e:
        raise ValueError(f"not a bitmap: {e}") from e
    found: list[int] = []
    for i, byte in enumerate(bits):
        if byte:
            found += [start + i * 8 + bit for bit in range(8) if byte & (0x80 >> bit) and start + i * 8 + bit < blocks]
        if len(found) >= limit:
            break
    return found[:limit]

"""Heads of HTTP requests, and the memory of those that were read before.

A program sends the same head with every request, to the byte, and to read it costs more than all else the transport does for a
request. What the grammar has accepted once is known by its bytes from then on; what is new goes to the grammar. Bounded in number
and size, so that heads which never come again only pass through.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from spoke_agent.server.protocol.bounded_cache import BoundedCache

__all__ = ["NO_HEAD", "RequestHead", "HeadCache"]

_END: Final = b"\r\n\r\n"
_MOST: Final = 512
_LONGEST: Final = 2048
_OWN_WAY: Final = frozenset({b"content-encoding", b"expect", b"transfer-encoding", b"upgrade"})
"""Headers that make the body, or what follows it, a matter of the grammar."""


class RequestHead(Struct, frozen=True):
    """A request's head."""

    method: bytes
    path: bytes
    """With the query."""
    headers: Mapping[bytes, bytes]
    """Names in lower case; of a repeated header the last one counts."""
    keep_alive: bool
    """Whether the connection goes on after this request."""

    @property
    def body_bytes(self) -> int:
        """Content-Length; 0 without one."""
        return int(self.headers.get(b"content-length", 0))


NO_HEAD: Final = RequestHead(b"", b"", {}, keep_alive=False)


class HeadCache:
    """Heads by their bytes, those of the last line included."""

    def __init__(self, *, most: int = _MOST) -> None:
        """`most`: how many are known at a time; 0 is none."""
        self._most = most
        self._known: BoundedCache[bytes, tuple[RequestHead, int]] = BoundedCache(most)

    def __len__(self) -> int:
        return len(self._known)

    def split(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """Head and body of what is exactly one request with a known head; None for all else."""
        end = data.find(_END) + 4
        known = self._known.get(data[:end])
        if known is None or len(data) - end != known[1]:
            return None
        return known[0], data[end:]

    def remember(self, data: bytes, head: RequestHead) -> None:
        """Keep the head that `data` starts with, unless it is long or says more of the body than where it ends."""
        if not self._most:
            return
        end = data.find(_END) + 4
        if data[:1].isalpha() and end <= _LONGEST and head.keep_alive and _OWN_WAY.isdisjoint(head.headers):
            self._known.remember(data[:end], (head, head.body_bytes))

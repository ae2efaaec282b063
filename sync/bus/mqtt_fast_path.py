"""The TLS socket under paho: reads many records per call, and hands blocks to their handler without paho.

`ssl` returns one record (16 KiB) per call, and paho copies a packet five times on its way to a handler. Most traffic is blocks,
which use the simplest form of packet: they are cut out of the stream here, with one copy. paho gets all other bytes unchanged,
as if the blocks had not been there. Both are delivered in order, on the thread that calls `recv`, which is paho's only one.

Bulk is a PUBLISH of QoS 0 that is neither retained nor a duplicate and has no property but subscription identifiers (MQTT 5,
section 3.3). A connection with little traffic goes through paho whole, since paho decides by the bytes it sees whether the line
is alive.
"""

import ssl
import time
from collections.abc import Callable
from typing import Any, Self

__all__ = ["Bulk", "BulkSocket", "bulk_of", "bulk_socket", "packet_size"]

Bulk = Callable[[str, bytes, list[int]], None]
"""Takes topic, payload and subscription identifiers; must not raise."""

_PUBLISH = 0x30
_SUBSCRIPTION_ID = 0x0B
_ROOM_BYTES = 320 * 1024
"""Bytes that are read ahead: two blocks and some. A packet that is longer goes through paho."""
_TURN_PACKETS = 16
"""Packets that are delivered before paho may look after its own business (a ping, what it has to send)."""
_UNSEEN_S = 1.0
"""So long after paho saw its last byte, the next packet is for paho."""


class BulkSocket(ssl.SSLSocket):
    """A socket as paho uses it: non-blocking, with `recv`, `send` and `pending`. Its class is made by `bulk_socket`."""

    bulk: Bulk
    monotonic: Callable[[], float]
    """Seconds of a clock that only goes forward."""
    _room: bytearray
    _start: int
    _end: int
    _for_paho: int
    _seen: float

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """As `ssl.SSLContext.wrap_socket` makes it, which does not call `__init__` of this class."""
        made = super().__new__(cls, *args, **kwargs)
        made._room, made._start, made._end = bytearray(_ROOM_BYTES), 0, 0
        made._for_paho, made._seen = 0, made.monotonic()
        return made

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  # as in ssl
        """Shake hands; a socket that fails to is closed, which paho forgets."""
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise

    def pending(self) -> int:
        """Bytes that `recv` can go on with although the line has no more."""
        held = self._end - self._start
        ready = self._for_paho or 0 < packet_size(self._room, self._start, self._end) <= held
        # paho asks this before it waits on the socket: bytes that were read ahead do not make the socket readable.
        return super().pending() or (held if ready else 0)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Bytes of a packet that is not bulk; b"" at the end of the stream. Raises SSLWantReadError when there are none now."""
        # Not for ever: paho must come back to its loop to send pings and what else waits.
        for _ in range(_TURN_PACKETS):
            if self._for_paho:
                return self._take(buflen)
            if not self._next_packet() and not self._fill():
                return b""
        raise ssl.SSLWantReadError("others first")

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what the line takes now; returns how many bytes that was."""
        done = 0
        with memoryview(data) as view:
            while done < len(view):
                try:
                    done += super().send(view[done:], flags)
                except OSError:
                    if done:
                        break  # the next call meets it again
                    raise
        return done

    def _next_packet(self) -> bool:
        """Deliver what begins here, or leave it to paho; False when more of it must come first."""
        size, held = packet_size(self._room, self._start, self._end), self._end - self._start
        if not size:
            return False
        # First byte 0x30: PUBLISH, QoS 0, not retained, no duplicate. Once a second one packet goes to paho, which counts the
        # bytes it sees as a sign of life and would otherwise send pings or give the line up.
        if self._room[self._start] == _PUBLISH and size <= _ROOM_BYTES and self.monotonic() - self._seen < _UNSEEN_S:
            if size > held:
                return False
            found = bulk_of(memoryview(self._room)[self._start : self._start + size])
            if found is not None:
                self._start += size
                self.bulk(*found)
                return True
        self._for_paho = size
        return True

    def _take(self, most: int) -> bytes:
        if self._start == self._end and not self._fill():
            return b""
        end = self._start + min(most, self._for_paho, self._end - self._start)
        data = bytes(memoryview(self._room)[self._start : end])
        self._start, self._for_paho, self._seen = end, self._for_paho - len(data), self.monotonic()
        return data

    def _fill(self) -> int:
        """Read all that is here, as far as there is room; 0 at the end of the stream."""
        held = self._end - self._start
        # Move the rest to the front only when there is no room behind it: each move is a copy.
        if self._start and (not held or self._end == _ROOM_BYTES):
            self._room[:held] = self._room[self._start : self._end]
            self._start, self._end = 0, held
        before = self._end
        with memoryview(self._room) as view:
            while self._end < _ROOM_BYTES:
                try:
                    got = self.recv_into(view[self._end :])
                except OSError:
                    if self._end > before:
                        break  # the next call meets it again
                    raise
                if not got:
                    break
                self._end += got
        return self._end - before


def bulk_socket(bulk: Bulk, monotonic: Callable[[], float] = time.monotonic) -> type[BulkSocket]:
    """A class for `ssl.SSLContext.sslsocket_class` whose sockets give their bulk to `bulk`."""
    return type("BulkSocket", (BulkSocket,), {"bulk": staticmethod(bulk), "monotonic": staticmethod(monotonic)})


def packet_size(data: bytes | bytearray, start: int, end: int) -> int:
    """Length of the MQTT packet that begins at `start`, its header included; 0 when the header is not all there before `end`.

    A length of more than four bytes is none: 5 bytes are returned then, for paho to refuse (MQTT 5, section 1.5.5).
    """
    length = 0
    for i in range(4):
        at = start + 1 + i
        if at >= end:
            return 0
        length |= (data[at] & 0x7F) << 7 * i
        if data[at] < 0x80:
            # One byte of type, one to four of length, the rest.
            return 2 + i + length
    return 5


def bulk_of(packet: memoryview) -> tuple[str, bytes, list[int]] | None:
    """Topic, payload and subscription identifiers of a whole PUBLISH of QoS 0; None when it is not plain enough."""
    try:
        at = 1 + _varint(packet, 1)[1]
        end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
        topic = str(packet[at + 2 : end], "utf-8")
        length, width = _varint(packet, end)
        at = end + width
        end, ids = at + length, []
        while at < end:
            if packet[at] != _SUBSCRIPTION_ID:
                return None
            found, width = _varint(packet, at + 1)
            ids.append(found)
            at += 1 + width
    except (IndexError, ValueError):
        return None
    # The only copy of a block between TLS and its handler.
    return (topic, bytes(packet[end:]), ids) if at == end <= len(packet) and topic else None


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    """(value, bytes it took)."""
    value = 0
    for i in range(4):
        value |= (data[start + i] & 0x7F) << 7 * i
        if data[start + i] < 0x80:
            return value, i + 1
    raise ValueError("longer than four bytes")

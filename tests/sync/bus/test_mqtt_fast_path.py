"""The lane past paho: whatever comes in whatever pieces, each packet arrives once, on the right side, unchanged."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.identity.ca import DeviceCA
from sync.bus.mqtt_fast_path import BulkSocket, bulk_of, bulk_socket, packet_size
from sync.core.clock import ManualClock
from sync.core.tls import TlsFiles, client_context


def varint(value: int) -> bytes:
    found = b""
    while True:
        value, byte = divmod(value, 128)
        found += bytes([byte | (0x80 if value else 0)])
        if not value:
            return found


def publish(topic: str, payload: bytes, ids: tuple[int, ...] = (), *, first: int = 0x30, more: bytes = b"") -> bytes:
    properties = b"".join(b"\x0b" + varint(i) for i in ids) + more
    middle = b"\x00\x07" if first & 6 else b""
    body = len(topic.encode()).to_bytes(2, "big") + topic.encode() + middle + varint(len(properties)) + properties + payload
    return bytes([first]) + varint(len(body)) + body


@settings(max_examples=40)
@given(st.text(min_size=1, max_size=40), st.binary(max_size=300), st.lists(st.integers(1, 268_435_455), max_size=3))
def test_a_plain_publish_is_read_as_it_was_written(topic: str, payload: bytes, ids: list[int]) -> None:
    packet = publish(topic, payload, tuple(ids))
    assert packet_size(packet, 0, len(packet)) == len(packet)
    assert bulk_of(memoryview(packet)) == (topic, payload, ids)


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_nothing_that_can_be_sent_breaks_the_reader(body: bytes) -> None:
    packet = b"\x30" + varint(len(body)) + body
    found = bulk_of(memoryview(packet))
    assert found is None or len(found[1]) < len(body)


@pytest.mark.parametrize(
    "packet",
    [
        publish("t", b"x", more=b"\x01\x01"),  # a payload format
        publish("", b"x", more=b"\x23\x00\x01"),  # a topic alias
        b"\x30\x03\x00\x09t",  # a topic that is longer than the packet
        b"\x30\x07\x00\x01t\xff\xff\xff\xff",  # properties of no length
    ],
)
def test_what_is_not_plain_is_left_to_paho(packet: bytes) -> None:
    assert bulk_of(memoryview(packet)) is None


@pytest.mark.parametrize(
    ("head", "size"), [(b"", 0), (b"\x30", 0), (b"\x30\x80", 0), (b"\xd0\x00", 2), (b"\x30\xff\xff\xff\xff", 5)]
)
def test_the_length_of_a_packet_is_known_from_its_header(head: bytes, size: int) -> None:
    assert packet_size(head, 0, len(head)) == size


class Line:
    """A broker's end and ours, with TLS between them."""

    def __init__(self, folder: Path) -> None:
        ca, now = DeviceCA.create(folder / "ca", now=datetime.now(UTC)), datetime.now(UTC)
        ca.issue_client(folder / "tls", "hub", now=now)
        server = ca.issue_server(folder / "tls", ["localhost"], now=now)
        self.bulk: list[tuple[str, bytes, list[int]]] = []
        self.clock = ManualClock()
        theirs, ours = socket.socketpair()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certificate, server.key)
        made: list[ssl.SSLSocket] = []
        shaking = threading.Thread(target=lambda: made.append(context.wrap_socket(theirs, server_side=True)))
        shaking.start()
        mine = client_context(TlsFiles(*(folder / "tls" / name for name in ("ca.crt", "hub.crt", "hub.key"))))
        mine.sslsocket_class = bulk_socket(lambda *found: self.bulk.append(found), self.clock.monotonic)
        wrapped = mine.wrap_socket(ours, server_hostname="localhost")
        assert isinstance(wrapped, BulkSocket)
        self.ours: BulkSocket = wrapped
        shaking.join()
        self.theirs = made[0]
        self.ours.setblocking(False)

    def paho_reads(self, size: int, seconds: float = 5.0) -> bytes:
        """So many bytes, in the steps that paho takes; fewer when the time is over."""
        found, end = b"", time.monotonic() + seconds
        while len(found) < size and time.monotonic() < end:
            try:
                data = self.ours.recv(1 if len(found) < 2 else size - len(found))
            except ssl.SSLWantReadError:
                time.sleep(0.001)
                continue
            if not data:
                break
            found += data
        return found

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.close()


def test_bulk_goes_past_paho_and_all_else_reaches_it_in_order(line: Line) -> None:
    blocks = [publish(f"blob/{i}", bytes([i]) * 131_072, (3,)) for i in range(40)]
    pong, kept, large = b"\xd0\x00", publish("a/b", b"kept", first=0x31), publish("large", bytes(400_000))
    stream = b"".join([pong, *blocks[:20], kept, *blocks[20:], large, publish("c", b"acknowledged", first=0x32), pong])
    writing = threading.Thread(target=line.theirs.sendall, args=(stream,))
    writing.start()
    rest = pong + kept + large + publish("c", b"acknowledged", first=0x32) + pong
    assert line.paho_reads(len(rest)) == rest
    writing.join()
    assert line.bulk == [(f"blob/{i}", bytes([i]) * 131_072, [3]) for i in range(40)]
    assert line.ours.pending() == 0


def test_pieces_of_any_size_make_whole_packets(line: Line) -> None:
    for piece in (publish("t", b"one") + b"\xd0", b"\x00" + publish("t", b"two")[:3], publish("t", b"two")[3:]):
        line.theirs.sendall(piece)
        time.sleep(0.01)
    line.theirs.sendall(b"\xd0\x00")
    assert line.paho_reads(4) == b"\xd0\x00\xd0\x00"
    assert [payload for _, payload, _ in line.bulk] == [b"one", b"two"]


def test_on_a_slow_line_paho_sees_that_bytes_come(line: Line) -> None:
    packet = publish("t", bytes(1000))
    line.clock.advance(1.1)
    line.theirs.sendall(packet[:10])
    assert line.paho_reads(10, 2.0) == packet[:10], "else it would take the line for dead"


def test_the_end_of_the_stream_is_told(line: Line) -> None:
    line.theirs.sendall(publish("t", b"last"))
    line.theirs.close()
    assert line.paho_reads(1) == b""
    assert [payload for _, payload, _ in line.bulk] == [b"last"]


def test_a_large_send_goes_out_whole_and_in_order(line: Line) -> None:
    data, got = bytes(range(256)) * 8192, bytearray()

    def read() -> None:
        while len(got) < len(data):
            got.extend(line.theirs.recv(65536))

    reading = threading.Thread(target=read)
    reading.start()
    sent = 0
    while sent < len(data):
        try:
            sent += line.ours.send(data[sent:])
        except ssl.SSLWantWriteError:
            time.sleep(0.001)
    reading.join(10)
    assert bytes(got) == data

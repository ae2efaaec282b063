"""The HTTPS client's socket: what has arrived comes in few calls, unchanged, and waiting, ends and breaks are as ever."""

import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisioning.identity.ca import DeviceCA
from sync.core.tls import TlsFiles, https_context

DATA = bytes(range(256)) * 2048


@pytest.fixture
def line(session_ca: DeviceCA, tmp_path: Path) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Our end and the server's."""
    now = datetime.now(UTC)
    server = session_ca.issue_server(tmp_path, ["localhost"], now=now)
    client = session_ca.issue_client(tmp_path, "hub", now=now)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server.certificate, server.key)
    ours = https_context(TlsFiles(client.ca, client.certificate, client.key))
    left, right = socket.socketpair()
    for end in (left, right):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    accepted: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: accepted.append(theirs.wrap_socket(right, server_side=True)))
    thread.start()
    mine = ours.wrap_socket(left, server_hostname="localhost")
    thread.join()
    with mine, accepted[0]:
        yield mine, accepted[0]


def test_all_that_is_there_comes_at_once_up_to_what_was_asked_for(line) -> None:
    mine, theirs = line
    theirs.sendall(DATA[:150_000])
    first = mine.recv(65_536)
    assert first == DATA[:65_536]
    rest = mine.recv(1 << 20)
    assert rest == DATA[65_536:150_000]


def test_it_waits_for_the_first_byte_and_no_longer(line) -> None:
    mine, theirs = line
    mine.settimeout(0.1)
    with pytest.raises(TimeoutError):
        mine.recv(65_536)
    theirs.sendall(DATA[:16_384])
    assert mine.recv(65_536) == DATA[:16_384]
    assert mine.gettimeout() == 0.1


def test_the_end_comes_after_the_last_byte(line) -> None:
    mine, theirs = line
    theirs.sendall(DATA[:40_000])
    theirs.shutdown(socket.SHUT_RDWR)
    assert mine.recv(65_536) == DATA[:40_000]
    assert mine.recv(65_536) == b""


def test_a_damaged_record_is_told_after_what_came_before_it(line) -> None:
    mine, theirs = line
    theirs.sendall(DATA[:16_384])
    socket.socket.sendall(theirs, b"\x17\x03\x03\x00\x40" + bytes(64))
    assert mine.recv(65_536) == DATA[:16_384]
    with pytest.raises(ssl.SSLError):
        mine.recv(65_536)

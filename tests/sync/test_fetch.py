"""The HTTPS road: ranges, interruptions, and servers that misbehave. A real socket server that does as it is told."""

import hashlib
import http.server
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model_formats.core.types import digest_of
from model_formats.package.image_layout import PackageTampered
from sync.core.clock import ManualClock
from sync.store import BLOCK_SIZE, BlobStore
from sync.transfer import BlobGone, TransferCancelled, TransferStalled
from sync.transfer.fetch import fetch_blob

DATA = random.Random(5).randbytes(20 * BLOCK_SIZE + 777)
DIGEST = digest_of(DATA)
HASHES = [hashlib.sha256(DATA[i : i + BLOCK_SIZE]).digest() for i in range(0, len(DATA), BLOCK_SIZE)]


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA by Range; `faults` are taken one per request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.always = ""
        self.ranges: list[str | None] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v2/digits/blobs/{DIGEST}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are the point here


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["range"])
        fault = self.server.faults.pop(0) if self.server.faults else self.server.always
        if fault.isdigit():
            self._answer(int(fault), b"", {})
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"] or "")
        assert match
        start, end = int(match[1]), int(match[2])
        body, status, headers = DATA[start : end + 1], 206, {"content-range": f"bytes {start}-{end}/{len(DATA)}"}
        if fault == "no ranges":
            body, status, headers = DATA, 200, {}
        if fault == "another range":
            headers = {"content-range": f"bytes {start + 1}-{end}/{len(DATA)}"}
        if fault == "poison":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "endless":
            body += bytes(10 * BLOCK_SIZE)
        self._answer(status, body, headers, fault)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], fault: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            body = body[: 5 * BLOCK_SIZE + 99]
        if fault == "hang":
            self.wfile.write(body[: 3 * BLOCK_SIZE])
            self.wfile.flush()
            self.rfile.read(1)  # until the client goes away
            return
        self.wfile.write(body)
        self.server.sent += len(body)
        if fault == "cut":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=5) as client:
        yield client


def fetch(client: httpx.Client, server: Server, store: BlobStore, **options: object) -> int:
    options = {"hashes": HASHES, "clock": ManualClock(), **options}
    return fetch_blob(client, server.url, DIGEST, len(DATA), store, **options)  # type: ignore[arg-type]


def test_a_blob_arrives_in_one_request(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    told: list[tuple[int, int]] = []
    assert fetch(client, server, store, progress=lambda *now: told.append(now)) == len(DATA)
    assert store.path(DIGEST).read_bytes() == DATA
    assert server.ranges == [f"bytes=0-{len(DATA) - 1}"]
    assert told[-1] == (len(DATA), len(DATA))


def test_a_cut_line_costs_no_block_twice(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    server.faults = ["cut", "cut", "cut"]
    store = BlobStore(tmp_path)
    assert fetch(client, server, store, tries=2) == len(DATA)
    assert store.path(DIGEST).read_bytes() == DATA
    assert server.ranges == [f"bytes={5 * n * BLOCK_SIZE}-{len(DATA) - 1}" for n in range(4)]


def test_it_goes_on_where_blocks_over_mqtt_stopped_and_fills_the_gaps(
    client: httpx.Client, server: Server, tmp_path: Path
) -> None:
    store = BlobStore(tmp_path)
    with store.writer(DIGEST, len(DATA)) as writer:
        for index in (0, 1, 5, 6, 19):
            writer.write(index, DATA[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
    assert fetch(client, server, store) == len(DATA) - 5 * BLOCK_SIZE
    spans = [(2, 5), (7, 19), (20, 21)]
    assert server.ranges == [f"bytes={a * BLOCK_SIZE}-{min(b * BLOCK_SIZE, len(DATA)) - 1}" for a, b in spans]


def test_a_busy_server_is_asked_again(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    server.faults = ["503", "500", "429"]
    assert fetch(client, server, BlobStore(tmp_path)) == len(DATA)


def test_a_server_that_stays_busy_is_given_up_with_its_status(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    server.always = "503"
    with pytest.raises(TransferStalled, match="status 503"):
        fetch(client, server, BlobStore(tmp_path), tries=3)
    assert len(server.ranges) == 3


@pytest.mark.parametrize("status", ["401", "403", "404", "410"])
def test_what_is_gone_is_asked_for_once(client: httpx.Client, server: Server, tmp_path: Path, status: str) -> None:
    server.always = status
    with pytest.raises(BlobGone, match=status):
        fetch(client, server, BlobStore(tmp_path))
    assert len(server.ranges) == 1


@pytest.mark.parametrize("fault", ["no ranges", "endless"])
def test_a_server_that_sends_more_than_asked_does_no_harm(
    client: httpx.Client, server: Server, tmp_path: Path, fault: str
) -> None:
    server.always = fault
    store = BlobStore(tmp_path)
    fetch(client, server, store)
    assert store.path(DIGEST).read_bytes() == DATA


def test_another_range_than_asked_for_is_not_written(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    server.always = "another range"
    with pytest.raises(TransferStalled, match="another range"):
        fetch(client, server, BlobStore(tmp_path), tries=2)


def test_a_poisoned_block_is_fetched_again_alone(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    server.faults = ["poison"]
    store = BlobStore(tmp_path)
    fetch(client, server, store)
    assert store.path(DIGEST).read_bytes() == DATA
    assert server.ranges[1] == f"bytes=0-{BLOCK_SIZE - 1}"


def test_a_server_that_only_poisons_is_given_up(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    server.always = "poison"
    with pytest.raises(TransferStalled, match="damaged"):
        fetch(client, server, BlobStore(tmp_path))


def test_without_a_block_list_a_poisoned_blob_is_thrown_away(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    server.faults = ["poison"]
    store = BlobStore(tmp_path)
    with pytest.raises(PackageTampered):
        fetch(client, server, store, hashes=None)
    assert not store.has(DIGEST)
    assert fetch(client, server, store, hashes=None) == len(DATA)


def test_a_dead_line_is_left_within_a_second_of_cancel(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    server.always = "hang"
    cancel, some = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def tell(held: int, size: int) -> None:
        if held == 3 * BLOCK_SIZE:
            some.set()

    def run() -> None:
        try:
            fetch(client, server, BlobStore(tmp_path), cancel=cancel, progress=tell)
        except TransferCancelled as e:
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    assert some.wait(10)
    begin = time.monotonic()
    cancel.set()
    thread.join(10)
    assert time.monotonic() - begin < 1.0
    assert errors
    server.always = ""
    assert fetch(client, server, BlobStore(tmp_path)) == len(DATA) - 3 * BLOCK_SIZE


def test_nobody_there_is_a_stall_that_names_the_address(client: httpx.Client, free_port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port}/blob"
    with pytest.raises(TransferStalled, match=str(free_port)):
        fetch_blob(client, url, DIGEST, len(DATA), BlobStore(tmp_path), tries=2, clock=ManualClock())


def test_a_long_pause_lets_the_connection_go_and_goes_on_after_it(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    class Night:
        def __init__(self) -> None:
            self.blocks, self.asked = 0, 0

        def wait(self) -> float:
            if self.blocks == 7 and self.asked < 3:
                self.asked += 1
                return 3600.0 if self.asked < 3 else 0.01
            return 0.0

        def spend(self, size: int) -> None:
            self.blocks += 1

    store = BlobStore(tmp_path)
    fetch(client, server, store, pace=Night(), cancel=Impatient())
    assert store.path(DIGEST).read_bytes() == DATA
    assert server.ranges == [f"bytes=0-{len(DATA) - 1}", f"bytes={7 * BLOCK_SIZE}-{len(DATA) - 1}"]


class Impatient(threading.Event):
    """An event whose waits return at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(0)

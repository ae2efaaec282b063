"""Slow, greedy and silent clients end by themselves; the others do not notice."""

import asyncio
import json
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest

from spoke_agent.server.http.transport import HttpLimits
from spoke_agent.server.models.batcher import Batcher, Cost
from spoke_agent.server.protocol.json_codec import parse_request
from spoke_agent.server_api.errors import DeadlinePassed, Overloaded
from tests.spoke_agent.server.sites import cnn
from tests.spoke_agent.server.test_requests import body


def heavy():
    """Slow enough for a thread of its own on any machine."""
    return cnn(1, layers=20, channels=128)


@pytest.fixture
def strict(site, run):
    site.slots(champion=site.publish(1))
    limits = HttpLimits(head_s=0.2, body_s=0.2, idle_s=0.2, write_s=0.2, linger_s=0.2, connections=8, body_bytes=100_000)
    return run(site, limits=limits)


def until_closed(connection):
    connection.settimeout(10)
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize(
    "start", [b"GET /v2 HTTP/1.1\r\nHos", b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_client_that_dawdles_is_told_and_ends(strict, start):
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        connection.sendall(start)
        assert b"408" in until_closed(connection)


def test_a_silent_client_ends(strict):
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        assert until_closed(connection) == b""


def test_a_client_that_never_reads_ends_and_frees_its_memory(strict, eventually):
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        connection.setblocking(False)
        try:
            for _ in range(20_000):
                connection.send(request)
        except (BlockingIOError, ConnectionError):
            pass
        eventually(lambda: not strict.server._tcp.connections)
    assert strict.http.get("/v2/health/live").status_code == 200


def test_a_body_beyond_the_limit_is_refused_before_it_is_taken(strict):
    answer = strict.http.post("/v2/models/digits/infer", content=b"x" * 200_000)
    assert answer.status_code == 413
    assert "100000" in answer.json()["error"]


def test_a_gigabyte_in_chunks_is_cut_off(strict):
    def endless():
        for _ in range(1024):
            yield b"x" * 2**20

    try:
        answer = strict.http.post("/v2/models/digits/infer", content=endless())
        assert answer.status_code == 413
    except httpx.TransportError:  # the client may still be sending when the connection ends
        pass
    assert strict.infer(body()).status_code == 200


def test_a_zip_bomb_is_cut_off(strict):
    import gzip

    bomb = gzip.compress(b"\0" * 50_000_000)
    answer = strict.http.post("/v2/models/digits/infer", content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413


def test_more_connections_than_allowed_are_told_to_wait(strict):
    held = [socket.create_connection(("127.0.0.1", strict.port)) for _ in range(8)]
    try:
        with socket.create_connection(("127.0.0.1", strict.port)) as connection:
            answer = until_closed(connection)
        assert b" 503 " in answer
        assert b"Retry-After" in answer
    finally:
        for connection in held:
            connection.close()


def test_health_answers_while_a_big_model_works(site, run):
    site.slots(champion=site.publish(1, proto=heavy()))
    running = run(site)
    assert running.server.models.live["digits"].answering.loaded_version.placement == "thread"
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            assert http.post("/v2/models/digits/infer", json=body(100)).status_code == 200
        done.set()

    caller = threading.Thread(target=ask)
    caller.start()
    answered = 0
    while not done.is_set():
        assert running.http.get("/v2/health/live").status_code == 200
        answered += 1
    caller.join()
    assert answered > 3


def test_the_bearer_token_is_asked_for_on_tcp_but_not_for_health(site, run, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-decent-length\n")
    site.slots(champion=site.publish(1))
    running = run(site, token_file=token)
    assert running.infer(body()).status_code == 401
    assert running.infer(body(), headers={"Authorization": "Bearer nonsense"}).status_code == 401
    assert running.infer(body(), headers={"Authorization": "Bearer a-token-of-decent-length"}).status_code == 200
    assert running.http.get("/v2/health/ready").status_code == 200
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(site.home / "run/server.sock"))) as http:
        assert http.get("http://spoke/v2/models/digits").status_code == 200


def test_tls(site, run, session_ca, tmp_path):
    files = session_ca.issue_server(tmp_path / "tls", ["localhost"], now=datetime.now(UTC))
    site.slots(champion=site.publish(1))
    running = run(site, tls_certificate=files.certificate, tls_key=files.key)
    trust = ssl.create_default_context(cafile=str(files.ca))
    with httpx.Client(base_url=f"https://localhost:{running.port}", verify=trust) as http:
        assert http.post("/v2/models/digits/infer", json=body()).status_code == 200


def test_a_fault_nobody_foresaw_is_one_callers_not_everybodys_who_came_with_it(site, run, monkeypatch):
    def faulty(given, json_length):
        if b"unlucky" in given:
            raise KeyError("nobody foresaw this")
        return parse_request(given, json_length)

    monkeypatch.setattr("spoke_agent.server.caches.request_templates.parse_request", faulty)
    site.slots(champion=site.publish(1))
    running = run(site)
    head = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s"
    bodies = [json.dumps(body() | {"id": name}).encode() for name in ("a", "unlucky", "b")]
    last = len(bodies) - 1
    sent = b"".join(head % (len(b), b"Connection: close\r\n" if i == last else b"", b) for i, b in enumerate(bodies))
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(sent)
        answers = until_closed(connection)
    assert [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"500", b"200"]
    assert b'"id":"a"' in answers
    assert b'"id":"b"' in answers


class Asked:
    """A job that keeps what it got."""

    mirrored = False
    caller = 0
    adapter = None

    def __init__(self, rows, value=0.0, key="", deadline=float("inf")):
        self.inputs = {"x": np.full((rows, 2), value, np.float32)}
        self.rows, self.key, self.deadline = rows, key, deadline
        self.got = None

    def finish(self, outputs):
        self.outputs = outputs

    def send(self):
        self.got = self.outputs[0]

    def fail(self, error):
        self.got = error


def lane_run(coroutine):
    return asyncio.run(coroutine)


@pytest.mark.parametrize("placement", ["loop", "thread"])
def test_each_job_gets_its_own_rows_back(placement):
    sizes: list[int] = []

    def run(inputs, outputs, adapter):
        sizes.append(len(inputs["x"]))
        return [inputs["x"] * 2]

    async def main():
        batcher = Batcher(run, Cost(0, 1e-6), placement, loop=asyncio.get_running_loop(), max_rows=16)
        jobs = [Asked(1 + i % 3, float(i), key=i % 2) for i in range(40)]
        for job in jobs:
            batcher.submit(job)
        while not all(job.got is not None for job in jobs):
            await asyncio.sleep(0)
        batcher.close()
        return jobs

    for i, job in enumerate(lane_run(main())):
        np.testing.assert_array_equal(job.got, np.full((1 + i % 3, 2), 2.0 * i, np.float32))
    assert sum(sizes) == sum(1 + i % 3 for i in range(40))
    assert max(sizes) <= 16
    assert len(sizes) < 40


@pytest.mark.parametrize("placement", ["loop", "thread"])
def test_who_cannot_be_answered_does_not_keep_the_rest_of_the_batch_from_it(placement):
    class Unanswerable(Asked):
        def finish(self, outputs):
            raise ValueError("no words for it")

    async def main():
        batcher = Batcher(
            lambda inputs, outputs, adapter: [inputs["x"]], Cost(0, 1e-6), placement, loop=asyncio.get_running_loop()
        )
        jobs = [Asked(1, 1.0), Unanswerable(1, 2.0), Asked(1, 3.0)]
        for job in jobs:
            batcher.submit(job)
        while not all(job.got is not None for job in jobs):
            await asyncio.sleep(0)
        batcher.close()
        return [job.got for job in jobs], batcher

    (one, two, three), batcher = lane_run(main())
    assert one[0, 0] == 1.0
    assert isinstance(two, ValueError)
    assert three[0, 0] == 3.0
    assert batcher.idle


def test_on_the_loop_a_full_batch_does_not_wait_for_the_rest_to_be_read():
    async def main():
        batcher = Batcher(lambda inputs, outputs, adapter: [inputs["x"]], Cost(0, 1e-6), "loop", loop=asyncio.get_running_loop())
        jobs = [Asked(1, float(i), key=i % 2) for i in range(200)]
        for job in jobs:
            batcher.submit(job)
        at_once = [job.got is not None for job in jobs]
        await asyncio.sleep(0)
        return jobs, at_once, batcher

    jobs, at_once, batcher = lane_run(main())
    assert at_once.index(False) >= 40
    assert 1 < at_once.count(False) < 100  # the others were with those that came before them
    for i, job in enumerate(jobs):
        np.testing.assert_array_equal(job.got, np.full((1, 2), float(i), np.float32))
    assert batcher.idle


@pytest.mark.parametrize("placement", ["loop", "thread"])
def test_a_fault_in_the_model_is_every_callers_and_the_lane_lives_on(placement):
    def run(inputs, outputs, adapter):
        if inputs["x"][0, 0] < 0:
            raise RuntimeError("bad")
        return [inputs["x"]]

    async def main():
        batcher = Batcher(run, Cost(0, 1e-6), placement, loop=asyncio.get_running_loop())
        bad, good = [Asked(1, -1.0), Asked(1, -1.0)], Asked(1, 1.0)
        for job in bad:
            batcher.submit(job)
        while not all(job.got is not None for job in bad):
            await asyncio.sleep(0)
        batcher.submit(good)
        while good.got is None:
            await asyncio.sleep(0)
        batcher.close()
        return bad, good, batcher

    bad, good, batcher = lane_run(main())
    assert all(isinstance(job.got, RuntimeError) for job in bad)
    assert good.got.shape == (1, 2)
    assert batcher.idle


def test_a_model_that_mixes_rows_is_caught():
    async def main():
        batcher = Batcher(
            lambda inputs, outputs, adapter: [inputs["x"][:1]], Cost(0, 1e-6), "loop", loop=asyncio.get_running_loop()
        )
        jobs = [Asked(1), Asked(1)]
        for job in jobs:
            batcher.submit(job)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return jobs

    assert all("number of rows" in str(job.got) for job in lane_run(main()))


def test_a_full_queue_refuses_and_a_late_request_is_not_run():
    async def main():
        loop = asyncio.get_running_loop()
        batcher = Batcher(lambda inputs, outputs, adapter: [inputs["x"]], Cost(0, 0.1), "loop", loop=loop, max_wait_s=0.95)
        for _ in range(9):
            batcher.submit(Asked(1))
        with pytest.raises(DeadlinePassed):
            batcher.submit(Asked(1, deadline=loop.time() + 0.5))
        batcher.submit(Asked(1))
        with pytest.raises(Overloaded, match="full"):
            batcher.submit(Asked(1))
        quick = Batcher(lambda inputs, outputs, adapter: [inputs["x"]], Cost(0, 0), "loop", loop=loop)
        late = Asked(1, deadline=loop.time() + 0.001)
        quick.submit(late)
        while loop.time() < late.deadline:
            pass
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return late, quick

    late, batcher = lane_run(main())
    assert isinstance(late.got, DeadlinePassed)
    assert batcher.idle


def test_overload_sheds_with_retry_after(site, run):
    site.slots(champion=site.publish(1, proto=heavy()))
    running = run(site, max_wait_s=0.05)
    statuses: list[int] = []
    retry: list[str] = []

    def ask() -> None:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            answer = http.post("/v2/models/digits/infer", content=payload)
            statuses.append(answer.status_code)
            retry.append(answer.headers.get("Retry-After", ""))

    payload = json.dumps(body(100))
    callers = [threading.Thread(target=ask) for _ in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert set(statuses) == {200, 503}
    assert {r for s, r in zip(statuses, retry, strict=True) if s == 503} == {"1"}
    assert running.control.stats().models["digits"].shed == statuses.count(503)


def is_open(connection: socket.socket) -> bool:
    """Whether nothing was said and it was not closed."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    return False


def test_ten_thousand_connections_leave_the_server_answering(site):
    """A real process; the connections beyond its limit are told to wait, those within it stay open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 < hard < 12_000:
        pytest.skip(f"this machine allows {hard} open files")
    site.slots(champion=site.publish(1))
    command = ["bash", "-c", 'ulimit -Sn 1024; exec "$@"', "bash", sys.executable, "-m", "spoke_agent"]
    process = subprocess.Popen([*command, "--home", str(site.home), "serve"], stderr=subprocess.DEVNULL)
    held: list[socket.socket] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (12_000, hard))
    try:
        port = site.home / "run" / "server.port"
        while not port.exists():
            assert process.poll() is None
            time.sleep(0.02)
        address = ("127.0.0.1", int(port.read_text()))
        uds = httpx.Client(transport=httpx.HTTPTransport(uds=str(site.home / "run" / "server.sock")), base_url="http://spoke")
        held = [socket.create_connection(address) for _ in range(10_000)]
        assert b" 503 " in held[-1].recv(200)
        assert uds.get("/v2/health/ready").status_code == 200
        assert sum(is_open(connection) for connection in held) == 2000
        held[0].sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in held[0].recv(200)
        for connection in held:
            connection.close()
        held = []
        assert httpx.get(f"http://127.0.0.1:{address[1]}/v2/health/ready").status_code == 200
        uds.close()
    finally:
        for connection in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.terminate()
        process.wait(30)

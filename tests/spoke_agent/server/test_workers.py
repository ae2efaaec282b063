"""Several server processes on one port, as real processes: one server to callers, to the agent and to who scrapes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from spoke_agent.data.store import open_data
from spoke_agent.server.app.worker_pool import settings_from, settings_text
from spoke_agent.server.handlers.aggregate import one_page, one_statistics
from spoke_agent.server.settings import ServeSettings
from spoke_agent.server_api.client import ControlClient
from spoke_agent.server_api.errors import ServerUnreachable
from tests.spoke_agent.server.sites import Site, cnn, image
from tests.spoke_agent.server.test_requests import body

INFER = "/v2/models/digits/infer"


class Serving:
    """`spoke serve --workers 2` on a site."""

    def __init__(self, site: Site, *words: str) -> None:
        self.home = site.home
        command = [sys.executable, "-m", "spoke_agent", "--home", str(site.home), "serve", "--workers", "2", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.control = ControlClient(site.home / "run" / "control.sock")
        self.each = [ControlClient(site.home / "run" / f"worker-{n}.sock") for n in (0, 1)]
        until(self.control.alive)
        self.url = f"http://127.0.0.1:{(site.home / 'run' / 'server.port').read_text()}"

    def infer(self, given=None):
        """On a connection of its own, so that the kernel deals it anew."""
        return httpx.post(self.url + INFER, json=given or body()).raise_for_status().json()

    @property
    def workers(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    def close(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def until(check, seconds=30.0):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_over(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.fixture
def serving(site):
    site.slots(champion=site.publish(1))
    found = Serving(site)
    yield found
    found.close()


def metric(page: str, start: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(start))


def test_two_processes_are_one_server(site, serving):
    for i in range(40):
        serving.infer({**body(), "id": f"r{i}"})
    own = [worker.stats().models["digits"].requests for worker in serving.each]
    assert min(own) > 0
    assert sum(own) == 40 == serving.control.stats().models["digits"].requests
    page = httpx.get(serving.url + "/metrics").text
    assert metric(page, 'spoke_requests_total{model="digits"}') == 40
    assert metric(page, "spoke_request_seconds_count") == 40
    assert metric(page, "spoke_serving_info") == 1
    assert metric(page, "spoke_resident_memory_bytes") > 2 * 30e6
    stats = httpx.get(serving.url + "/v2/models/digits/stats").json()["model_stats"]
    assert [s["inference_count"] for s in stats] == [40]

    # all follow a swap, and rows of both are kept once each
    site.slots(champion=site.publish(2, proto=cnn(2)))
    assert serving.control.reconcile().models["digits"].champion.version == 2
    assert {serving.infer()["model_version"] for _ in range(20)} == {"2"}
    assert serving.control.serving()[0].version == 2
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(site.home / "run" / "server.sock"))) as unix:
        assert unix.post("http://spoke" + INFER, json=body()).json()["model_version"] == "2"
    label = httpx.post(serving.url + "/v2/models/digits/feedback", json={"id": "r7", "label": 3})
    assert label.status_code == 200
    assert serving.close() == 0
    assert not list((site.home / "run").glob("*.sock"))
    store = open_data(site.home)
    try:
        assert sum(r["rows"] for r in store.summary()) == 61
        assert sum(r["labelled"] for r in store.summary()) == 1
    finally:
        store.close()


def test_grpc_is_shared_and_told_as_one_too(site):
    triton = pytest.importorskip("tritonclient.grpc")
    site.slots(champion=site.publish(1))
    serving = Serving(site, "--grpc-port", "0")
    try:
        address = f"127.0.0.1:{(site.home / 'run' / 'grpc.port').read_text()}"
        for _ in range(24):
            with triton.InferenceServerClient(address, channel_args=[("grpc.use_local_subchannel_pool", 1)]) as client:
                given = triton.InferInput("image", (1, 1, 8, 8), "FP32")
                given.set_data_from_numpy(image(1))
                assert client.infer("digits", [given]).as_numpy("logits").shape == (1, 10)
        until(lambda: sum(w.stats().models["digits"].requests for w in serving.each) == 24)
        assert all(w.stats().models["digits"].requests for w in serving.each)
        with triton.InferenceServerClient(address) as client:
            (told,) = client.get_inference_statistics("digits", as_json=True)["model_stats"]
        assert int(told["inference_count"]) == 24
    finally:
        serving.close()


def test_a_killed_worker_comes_back_and_the_other_answers_until_it_has_its_models(serving):
    before = serving.workers
    os.kill(before[0], signal.SIGKILL)
    until(lambda: is_over(before[0]))

    def answers_again():
        assert serving.infer()["model_version"] == "1"
        with contextlib.suppress(ServerUnreachable, KeyError):  # it is not there yet, or loads
            return serving.each[0].stats().models["digits"].requests > 0
        return False

    until(answers_again)
    assert set(serving.workers) != set(before)
    assert serving.control.reconcile().ok


def test_workers_end_with_their_parent(serving):
    pids = serving.workers
    assert len(pids) == 2
    serving.process.kill()
    until(lambda: all(map(is_over, pids)))


def test_the_memory_ceiling_counts_all_workers(site):
    site.slots(champion=site.publish(1))
    found = Serving(site, "--memory-mb", "64")
    try:
        champion = found.control.reconcile().models["digits"].champion
        assert (champion.loaded, champion.reason) == (False, "no_memory")
        assert "of 32 MB" in champion.detail
    finally:
        assert found.close() == 0


def test_what_no_restart_can_mend_ends_them_all(site):
    site.slots(champion=site.publish(1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "spoke_agent", "--home", str(site.home), "serve", "--workers", "2"]
        done = subprocess.run([*command, "--port", str(taken.getsockname()[1])], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot listen" in done.stderr
    assert not (site.home / "run" / "server.port").exists()


def test_settings_reach_a_worker_whole(tmp_path):
    settings = ServeSettings(home=tmp_path, port=None, workers=4, memory_mb=400, token_file=tmp_path / "t", engines=("openvino",))
    assert settings_from(settings_text(settings)) == settings
    assert (settings.share.memory_mb, settings.share.capture_rows_s, settings.share.capture_burst) == (100, 125, 1250)


def test_pages_are_added_up_sample_by_sample():
    one = '# HELP a x\n# TYPE a counter\na{m="1"} 2\n# HELP spoke_uptime_seconds x\n# TYPE spoke_uptime_seconds gauge\n'
    two = one.replace("} 2", "} 3") + "spoke_uptime_seconds 5\n"
    other = one.replace('m="1"} 2', 'm="2"} 7') + "spoke_uptime_seconds 9\n"
    assert one_page([two, other]).splitlines() == [
        "# HELP a x",
        "# TYPE a counter",
        'a{m="1"} 3',
        'a{m="2"} 7',
        "# HELP spoke_uptime_seconds x",
        "# TYPE spoke_uptime_seconds gauge",
        "spoke_uptime_seconds 9",
    ]
    assert one_page([two, two]).splitlines()[2] == 'a{m="1"} 6'


def test_statistics_are_added_up_by_version():
    def told(version, n):
        stats = {"name": "m", "version": version, "inference_count": n, "inference_stats": {"fail": {"count": n, "ns": 0}}}
        return json.loads(json.dumps({"model_stats": [stats]}))

    found = one_statistics([told("1", 2), told("1", 3), told("2", 1)])["model_stats"]
    assert [(s["version"], s["inference_count"], s["inference_stats"]["fail"]["count"]) for s in found] == [
        ("1", 5, 5),
        ("2", 1, 1),
    ]

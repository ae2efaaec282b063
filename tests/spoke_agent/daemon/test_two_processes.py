"""`spoke run` for real: two processes, a real broker with mutual TLS, a real model behind a real server."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from model_formats.core.cpu_class import this_class
from provisioning.identity.enrol import HubAddress
from spoke_agent.site.home import SpokeHome
from sync.core.types import SpokeId
from tests.spoke_agent.daemon.smallhub import SmallHub
from tests.spoke_agent.server.sites import Site, cnn, image

pytestmark = [pytest.mark.mosquitto]
ME = SpokeId("frankfurt")


class Running:
    """A hub, and `spoke run` on an enrolled home."""

    def __init__(self, folder, house):
        self.home, self.house = SpokeHome(folder / "s"), house
        self.home.root.mkdir()
        (self.home.root / "spoke.toml").write_text("tick_s = 0.05\nretry_s = 0.1\n")
        house.admit(ME, "eu")
        address = HubAddress(url="https://localhost:1", broker_host="localhost", broker_port=house.broker.port)
        self.hub = SmallHub(folder / "hub", house.hub(), address=address, ca=house.ca)
        self.hub.open()
        self.hub.enrol(self.home.root)
        self.process = None

    def release(self, version, *, off=None, **kwargs):
        site = Site(self.hub.folder / f"site-{version}")
        slot = site.publish(version, off=off)
        for blob in (site.home / "blobs" / "sha256").iterdir():
            self.hub.layout.put(blob.read_bytes())
        return self.hub.release(slot.index, version, **kwargs)

    def start(self, *args):
        line = [sys.executable, "-m", "spoke_agent", "--home", str(self.home.root), "run", *args]
        self.process = subprocess.Popen(line)

    def spoke(self, *args):
        line = [sys.executable, "-m", "spoke_agent", "--json", "--home", str(self.home.root), *args]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    def pid(self, name):
        return int((self.home.run / f"{name}.pid").read_text())

    def infer(self):
        port = self.home.server_port.read_text().strip()
        body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": image(1).ravel().tolist()}]}
        answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/digits/infer", json=body, timeout=10)
        return answer.raise_for_status().json()["model_version"]

    def until(self, done, seconds=60):
        deadline = time.monotonic() + seconds
        while True:
            try:
                if value := done():
                    return value
            except (OSError, httpx.HTTPError, ValueError):
                pass
            assert time.monotonic() < deadline, self.hub.chain(ME)
            assert self.process.poll() is None
            time.sleep(0.05)

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0
        self.hub.close()


@pytest.fixture
def running(tmp_path, mosquitto):
    made = Running(tmp_path, mosquitto)
    yield made
    made.close()


def test_either_process_may_be_killed_and_the_other_goes_on(running):
    first, second = running.release(1), running.release(2)
    running.start()
    running.hub.want(ME, first, 1)
    running.until(lambda: running.hub.chain(ME)[-1:] == ["committed"])
    assert running.infer() == "1"
    served = running.hub.reports[ME][-1].serving[0]
    assert (served.index, served.engine) == (first, "onnxruntime")

    old = running.pid("agent")
    os.kill(old, signal.SIGKILL)
    assert running.infer() == "1"
    running.until(lambda: running.pid("agent") != old)
    running.hub.want(ME, second, 2)
    running.until(lambda: running.hub.reports[ME][-1].version == 2 and running.hub.chain(ME)[-1] == "committed")
    assert running.infer() == "2"

    agent, old = running.pid("agent"), running.pid("server")
    os.kill(old, signal.SIGKILL)
    running.until(lambda: running.pid("server") != old and running.infer() == "2")
    assert running.pid("agent") == agent

    status = json.loads(running.spoke("status").stdout)
    assert (status["agent"], status["server"], status["models"][0]["serving"]) == (True, True, 2)
    assert not status["offline"]
    assert json.loads(running.spoke("doctor").stdout)["ok"]

    running.house.broker.stop()

    def unlinked():
        found = {f["ailment"]: f["issue"] for f in json.loads(running.spoke("doctor").stdout)["findings"]}
        return "no connection" in found.get("link", "")

    running.until(unlinked)
    assert running.infer() == "2"
    assert status["connected"] is True
    again = running.spoke("run")
    assert (again.returncode, json.loads(again.stderr)["error"]) == (2, "agent_running")


def test_a_variant_that_is_off_here_gives_way_to_the_next_one(running):
    first, second = running.release(1), running.release(2, off=cnn(77))
    running.start()
    running.hub.want(ME, first, 1)
    running.until(lambda: running.hub.chain(ME)[-1:] == ["committed"])
    running.hub.want(ME, second, 2)
    running.until(lambda: running.hub.reports[ME][-1].version == 2 and running.hub.chain(ME)[-1] == "committed")
    assert running.infer() == "2"
    last = running.hub.reports[ME][-1]
    assert (last.serving[0].variant, last.serving[0].mode, last.serving[0].cpu_class) == ("onnx-fp32", "fast", this_class())
    assert [(p.variant, str(p.reason)) for p in last.evidence.passed_over] == [("onnx-int8", "golden_mismatch")]
    assert last.serving[0].row_us > 0
    (model,) = json.loads(running.spoke("status").stdout)["models"]
    assert (model["variant"], model["passed_over"]) == ("onnx-fp32", [{"variant": "onnx-int8", "reason": "golden_mismatch"}])

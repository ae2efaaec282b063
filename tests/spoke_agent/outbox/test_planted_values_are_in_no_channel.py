"""Canary rows through a whole spoke: two processes, a real broker, a real model. Every byte that left is searched, by channel.

Unique values are served, labelled, mistyped and drifted upon, and both processes fall. Then: MQTT (all that the broker saw, and
what is inside the signatures), HTTP (who was called), DNS (which names were asked for), logs and tracebacks, metrics, answers of
the command line, the evidence pack, receipts for the way by hand, core dumps. The outbox alone is tried in
`test_planted_values_never_leave.py`. The store and the callers' answers must hold the values, or the search would prove nothing.
"""

import base64
import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from model_formats.package import ImageLayout
from provisioning.identity.enrol import HubAddress
from spoke_agent.data.store import open_data
from spoke_agent.site.home import SpokeHome
from sync.core.types import SpokeId
from sync.protocol.egress import EgressRecord
from tests.samples.adaptable import packed_adaptable
from tests.spoke_agent.daemon.smallhub import SmallHub

pytestmark = [pytest.mark.mosquitto, pytest.mark.xdist_group("planted values")]
ME = SpokeId("frankfurt")
VALUE, WORDS, LABEL = np.float32(13.579135), "canary-9f31-zelda", 8675309
HEARING = """
import json, os, sys

_out = os.open(os.environ["HEARD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def _hear(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        told = [str(a) for a in args if not hasattr(a, "fileno")]
        os.write(_out, (json.dumps([event, told]) + "\\n").encode())

sys.addaudithook(_hear)
"""
SETTINGS = (
    "tick_s = 0.05\nretry_s = 0.1\nupkeep_s = 0.2\ndrift_window_s = 0.5\ndrift_tell_s = 0.5\nops_every_s = 1\n"
    "serve_access_log = true\nheartbeat_s = 1\n"
)
WIDE_OPEN = (
    "round_to: 1\nallow: [{kind: ops}, {kind: drift_verdict}, {kind: drift_hist}, {kind: rff_mean}, {kind: perf_estimate}, "
    "{kind: masked_sum, consent: x}]\n"
)


def traces() -> list[bytes]:
    """The planted things as text, rounded, raw in both widths and orders, and the words."""
    value = float(VALUE)
    texts = {repr(value), str(VALUE), f"{value:.5f}", f"{value:.3f}", WORDS, "zelda", str(LABEL)}
    return [t.encode() for t in texts] + [struct.pack(code, value) for code in ("<f", ">f", "<d", ">d")]


def found_in(data: bytes) -> list[bytes]:
    """The traces that are there; that a clock showed 13.579 seconds is none."""
    opened = [base64.b64decode(p) for p in re.findall(rb'"payload": ?"([A-Za-z0-9+/=]+)"', data)]
    timeless = [re.sub(rb"\d\d:\d\d:\d\d[.,]\d+", b"", part) for part in (data, *opened)]
    return [t for t in traces() for part in timeless if t in part]


class Spoke:
    """`spoke run` under a hub, with everything that leaves it on record."""

    def __init__(self, folder: Path, house) -> None:
        self.folder, self.house, self.home = folder, house, SpokeHome(folder / "s")
        self.home.root.mkdir()
        house.admit(ME, "eu")
        address = HubAddress(url="https://localhost:1", broker_host="localhost", broker_port=house.broker.port)
        self.hub = SmallHub(folder / "hub", house.hub(), address=address, ca=house.ca)
        self.heard_by_mqtt: list[bytes] = []
        tap = house.hub("hub-1")
        tap.connect()
        tap.subscribe("ss/v1/site/#", lambda m: self.heard_by_mqtt.append(m.topic.encode() + b" " + m.payload))
        tap.subscribe("ss/v1/zone/+/blob/+/want", lambda m: self.heard_by_mqtt.append(m.topic.encode() + b" " + m.payload))
        self.hub.open()
        self.hub.enrol(self.home.root)
        (self.home.root / "spoke.toml").write_text(SETTINGS)
        (self.home.root / "egress.yaml").write_text(WIDE_OPEN)
        (folder / "hearing").mkdir()
        (folder / "hearing" / "sitecustomize.py").write_text(HEARING)
        self.log = (folder / "log").open("wb")
        self.heard, self.environment = (
            folder / "heard",
            os.environ
            | {
                "HEARD": str(folder / "heard"),
                "PYTHONPATH": str(folder / "hearing"),
            },
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.answers = b""

    def start(self, index: str) -> None:
        line = [sys.executable, "-m", "spoke_agent", "--home", str(self.home.root), "run"]
        self.process = subprocess.Popen(line, env=self.environment, stdout=self.log, stderr=self.log, cwd=self.folder)
        self.hub.want(ME, index, 1)
        self.until(lambda: self.hub.chain(ME)[-1:] == ["committed"])

    def publish(self) -> str:
        layout, index = packed_adaptable(self.folder / "package")
        for blob in (ImageLayout(layout.folder).folder / "blobs" / "sha256").iterdir():
            self.hub.layout.put(blob.read_bytes())
        return self.hub.release(index, 1)

    def post(self, path: str, body: object) -> httpx.Response:
        port = self.home.server_port.read_text().strip()
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = httpx.post(f"http://127.0.0.1:{port}{path}", content=content, timeout=30)
        self.answers += answer.content
        return answer

    def tell(self, lines: dict[str, str]) -> dict[str, bytes]:
        """What commands say on both streams; they run side by side."""
        start = [sys.executable, "-m", "spoke_agent", "--json", "--home", str(self.home.root)]
        kept = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": self.environment, "cwd": self.folder}
        running = {name: subprocess.Popen([*start, *line.split()], **kept) for name, line in lines.items()}
        return {name: process.communicate(timeout=60)[0] for name, process in running.items()}

    def until(self, done, seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if done():
                    return
            except (OSError, httpx.HTTPError, ValueError):
                pass
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.05)

    def kinds(self) -> set[str]:
        egress = [m for m in self.heard_by_mqtt if b"/egress/" in m.split(b" ", 1)[0]]
        return {EgressRecord.parse(base64.b64decode(json.loads(m.split(b" ", 1)[1])["payload"])).body.kind for m in egress}

    def pid(self, name: str) -> int:
        return int((self.home.run / f"{name}.pid").read_text())

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def close(self) -> None:
        self.stop()
        self.hub.close()
        self.log.close()


def rows(number: int, seed: int) -> np.ndarray:
    """Pictures of noise, the first two of nothing but the canary: then even a row's own mean is the planted value."""
    images = np.random.default_rng(seed).uniform(0, 16, (number, 1, 8, 8)).astype(np.float32)
    images[:2] = VALUE
    return images


def tensor(images: np.ndarray, **changes: object) -> dict:
    return {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()} | changes


INFER, FEEDBACK = "/v2/models/digits/infer", "/v2/models/digits/feedback"
COMMANDS = {
    "status": "status",
    "doctor": "doctor",
    "data": "data list",
    "egress": "egress show --exact",
}
CHANNELS = ["mqtt", "http and dns", "log", "metrics", "evidence", "receipts", "packing", "writing receipts", *COMMANDS]


def serve_and_label(spoke: Spoke) -> None:
    for i in range(11):
        assert spoke.post(INFER, {"id": f"{WORDS}-{i}", "inputs": [tensor(rows(200, i))]}).status_code == 200
        assert spoke.post(FEEDBACK, {"id": f"{WORDS}-{i}", "label": [3] * 200}).status_code == 200


def mistype(spoke: Spoke) -> list[int]:
    """The statuses of requests that are wrong in every part that could be quoted back."""
    wrong = [
        (INFER, {"id": WORDS, "inputs": [tensor(rows(2, 0), datatype=WORDS)]}),
        (INFER, {"id": WORDS, "inputs": [tensor(rows(2, 0), name=WORDS)]}),
        (INFER, {"id": WORDS, "inputs": [tensor(rows(2, 0), shape=[2, 1, 8, LABEL])]}),
        (INFER, {"id": WORDS, "inputs": [tensor(rows(2, 0), data=[WORDS] * 128)]}),
        (INFER, {"id": WORDS, "inputs": [tensor(rows(2, 0) * 1e6)]}),
        (INFER, b'{"inputs": [' + repr(float(VALUE)).encode() + b", " + WORDS.encode()),
        (f"/v2/models/nobody/infer?{WORDS}", {"inputs": [tensor(rows(2, 0))]}),
        (f"/v2/models/digits/versions/9/infer?label={LABEL}", {"inputs": [tensor(rows(2, 0))]}),
        (FEEDBACK, {"id": f"{WORDS}-0", "label": LABEL}),
        (FEEDBACK, {"id": WORDS, "label": WORDS}),
        (FEEDBACK, {"id": f"{WORDS}-none", "label": float(VALUE)}),
    ]
    return [spoke.post(path, body).status_code for path, body in wrong]


@dataclass(frozen=True)
class Lived:
    """A spoke that has stopped, and what came out of it."""

    spoke: Spoke
    channels: dict[str, bytes]
    limits: list[str]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, shared_mosquitto) -> Iterator[Lived]:
    """One life of a spoke for all tests of this file: it serves, is mistyped at, tells, falls, and is asked by commands."""
    spoke = Spoke(tmp_path_factory.mktemp("planted"), shared_mosquitto)
    try:
        yield live(spoke)
    finally:
        spoke.close()


def live(spoke: Spoke) -> Lived:
    spoke.start(spoke.publish())
    serve_and_label(spoke)
    assert sum(status >= 400 for status in mistype(spoke)) >= 8
    spoke.until(lambda: {"ops", "drift_verdict", "drift_hist", "rff_mean", "perf_estimate"} <= spoke.kinds())
    limits = [Path(f"/proc/{spoke.pid(name)}/limits").read_text() for name in ("server", "agent")]
    port = spoke.home.server_port.read_text().strip()
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).content
    for name in ("server", "agent"):
        os.kill(spoke.pid(name), signal.SIGSEGV)
    spoke.until(lambda: spoke.post(INFER, {"inputs": [tensor(rows(2, 0))]}).status_code == 200)
    told = spoke.tell(COMMANDS)
    spoke.stop()
    told |= spoke.tell({"packing": "egress pack --out pack", "writing receipts": "sideload receipts receipts.json"})
    channels = {
        "mqtt": b"\n".join(spoke.heard_by_mqtt),
        "http and dns": spoke.heard.read_bytes(),
        "log": (spoke.folder / "log").read_bytes(),
        "metrics": metrics,
        "evidence": b"".join(f.read_bytes() for f in sorted((spoke.folder / "pack").iterdir())),
        "receipts": (spoke.folder / "receipts.json").read_bytes(),
        **told,
    }
    return Lived(spoke, channels, limits)


def test_every_channel_was_heard(lived: Lived):
    assert sorted(lived.channels) == sorted(CHANNELS)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_carries_no_planted_value(lived: Lived, channel: str):
    assert lived.channels[channel], "it said something"
    assert found_in(lived.channels[channel]) == []


def test_the_search_finds_what_is_there(lived: Lived):
    """The callers' own answers hold what they sent, and the encrypted store holds the rows."""
    assert found_in(lived.spoke.answers)
    with contextlib.closing(open_data(lived.spoke.home.root)) as data:
        assert any((b.inputs["image"] == VALUE).any() for b in data.batches("digits"))


def test_a_process_that_fell_left_no_core(lived: Lived):
    assert all(re.search(r"Max core file size +0 +0", text) for text in lived.limits)
    assert [str(f) for f in lived.spoke.folder.rglob("core*") if f.is_file() and "site-packages" not in str(f)] == []


def test_only_the_hub_was_called(lived: Lived):
    """Nothing was resolved but the hub's name (it is here on this machine), and nothing else was called over a network."""
    events = [json.loads(line) for line in lived.spoke.heard.read_text().splitlines()]
    asked = {told[0] for event, told in events if event in ("socket.getaddrinfo", "socket.gethostbyname")}
    assert asked <= {"localhost", "127.0.0.1", "None"}
    called = {told[0] for event, told in events if event == "socket.connect"}
    strangers = [c for c in called if not c.startswith("/") and "run/" not in c and not re.search(r"'(127\.0\.0\.1|::1)', ", c)]
    assert strangers == []

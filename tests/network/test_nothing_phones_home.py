"""Training, import, both engines, faults in requests, tuning and sideload on a recorded network: nobody but the hub is called.

And what was planted in requests is in no file outside the homes of hub and spoke, no log and no answer but its caller's own.
"""

import json
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub.train.datasets import breast_cancer
from tests.network.hosts import REPOSITORY, Hosts, allowed, unwatched, wait_for
from tests.network.traced import TracedHosts
from tests.network.words import write_words

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mosquitto,
    pytest.mark.timeout(300),
]
BIN = Path(sys.executable).parent
AWAKE_S = 12
"""The client that was found waited eight seconds before its first call."""
SERVE_OPENVINO = """
import sys
from pathlib import Path
from spoke_agent.server.app.server import serve
from spoke_agent.server.settings import ServeSettings
serve(ServeSettings(home=Path(sys.argv[1]), engines=("openvino",)))
"""


class Company:
    """A hub and a shop, each a host; their people have home folders of their own."""

    def __init__(self, folder: Path, hosts: Hosts | TracedHosts) -> None:
        self.folder, self.hosts = folder, hosts
        self.people, self.log = folder / "people", folder / "log"
        self.people.mkdir()
        self.log.touch()
        self.running: list[subprocess.Popen[bytes]] = []

    def line(self, host: str, *words: object) -> list[str]:
        return [*self.hosts.prefix(host), *map(str, words)]

    def environment(self) -> dict[str, str]:
        mine = {"HOME": str(self.people), "TMPDIR": str(self.people), "XDG_CACHE_HOME": str(self.people / "cache")}
        return {**unwatched(), **mine, **self.hosts.environment()}

    def run(self, host: str, *words: object, status: int = 0) -> str:
        line, options = self.line(host, *words), {"cwd": REPOSITORY, "env": self.environment(), "timeout": 120}
        done = subprocess.run(line, capture_output=True, text=True, check=False, **options)
        with self.log.open("a") as log:
            log.write(done.stderr)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def hub(self, *words: object) -> Any:
        return json.loads(self.run("hub", BIN / "hub", "--json", "--home", self.folder / "hub", *words) or "null")

    def spoke(self, *words: object, status: int = 0) -> str:
        return self.run("shop", BIN / "spoke", "--home", self.folder / "shop", *words, status=status)

    def start(self, host: str, *words: object) -> subprocess.Popen[bytes]:
        line, options = self.line(host, *words), {"cwd": REPOSITORY, "env": self.environment(), "start_new_session": True}
        with self.log.open("ab") as log:
            self.running.append(subprocess.Popen(line, stdout=log, stderr=log, **options))
        return self.running[-1]

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGTERM)  # strace itself would only let go
        process.wait(30)
        self.running.remove(process)

    def close(self) -> None:
        for process in reversed(list(self.running)):
            self.stop(process)


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    recorded = Hosts if allowed() else TracedHosts
    with recorded(tmp_path / "network", ["hub", "shop"]) as hosts:
        made = Company(tmp_path, hosts)
        try:
            yield made
        finally:
            made.close()


def publish(company: Company) -> Path:
    """Train one model, with an OpenVINO variant, bring another, and put both on a stick for the shop."""
    rows = write_words(company.folder / "brought")
    where = ("--zone", "eu", "--regime", "gdpr")
    company.hub("init")
    company.start("hub", BIN / "hub", "--home", company.folder / "hub", "up")
    company.hub("model", "build", "breast-cancer", "--version", 1, *where, "--openvino-ir")
    data = ("--train", rows / "train.npz", "--held-out", rows / "held.npz", "--task", "classification", "--classes", "no,yes")
    company.hub("model", "import", rows / "words.onnx", "--model", "words", "--version", 1, *data, *where)
    wait_for("the hub", company.folder / "hub" / "run" / "hub.json")
    code = company.hub("spoke", "invite", "shop", "--zone", "eu", "--regime", "gdpr")["code"]
    address = json.loads((company.folder / "hub" / "run" / "hub.json").read_text())["spokes_use"]["url"]
    company.spoke("enrol", "--hub", address, "--code", code)
    names = []
    for model in ("breast-cancer@1", "words@1"):
        company.hub("model", "publish", model)
        names += ["--model", model]
    stick = company.folder / "stick"
    company.hub("bundle", "export", "--site", "shop", *names, "--out", stick, "--soak", 0)
    return stick


def own_rows(folder: Path) -> Path:
    """Labelled rows of the shop's own, whose instruments measure otherwise than those of the training rows."""
    rows = breast_cancer().held_out
    cells = rows.inputs["cells"][:200] * np.float32(1.2)
    np.savez(folder / "own.npz", cells=cells, label=rows.labels[:200])
    return folder / "own.npz"


def ask(company: Company, planted: tuple[int, float]) -> list[tuple[int, str]]:
    said = company.run("shop", sys.executable, "-m", "tests.network.rude_caller", company.folder / "shop", *planted)
    return [tuple(one) for one in json.loads(said)]


def written_outside(company: Company, since: Path) -> list[Path]:
    """Every file of this machine that was written since, but for the two homes and the recorder's own."""
    ours = [company.folder / name for name in ("hub", "shop", "network", "brought", "stick", "own.npz")]
    leave = [word for path in ("/proc", "/sys", "/dev", *ours) for word in ("-path", str(path), "-prune", "-o")]
    found = subprocess.run(
        ["find", "/", *leave, "-newer", str(since), "-type", "f", "-size", "-64M", "-print0"], capture_output=True, check=False
    )
    return [Path(os.fsdecode(name)) for name in found.stdout.split(b"\0") if name]


def traces(planted: tuple[int, float]) -> list[bytes]:
    number, value = planted
    raw = struct.pack("<q", number), struct.pack("<d", value), struct.pack("<f", value)
    return [str(number).encode(), f"{value:.6f}".encode(), *raw]


def holding(files: Sequence[Path], planted: tuple[int, float]) -> list[str]:
    found = []
    for file in files:
        try:
            data = file.read_bytes()
        except OSError:  # another process's, and gone
            continue
        found += [str(file) for trace in traces(planted) if trace in data]
    return found


def test_no_engine_and_no_library_calls_anybody_or_writes_down_a_value(company: Company) -> None:
    planted = 1_000_000_000 + secrets.randbelow(1_000_000_000), 17.0 + secrets.randbelow(1_000_000) / 1_000_000
    stamp = company.folder / "stamp"
    stamp.touch()
    stick = publish(company)
    shop = company.folder / "shop"
    (shop / "spoke.toml").write_text("serve_grpc_port = 0\nserve_access_log = true\n")
    company.spoke("sideload", "apply", stick)
    running = company.start("shop", BIN / "spoke", "--home", shop, "run")
    wait_for("the server", shop / "run" / "server.port")
    awake = time.monotonic() + AWAKE_S
    said = ask(company, planted)
    company.spoke("data", "import", "--model", "breast-cancer", own_rows(company.folder))
    tuned = company.spoke("tune", "--model", "breast-cancer", "--json")
    assert json.loads(tuned)["accepted"], tuned
    time.sleep(max(0.0, awake - time.monotonic()))
    company.spoke("sideload", "receipts", company.folder / "receipts")
    company.stop(running)
    openvino = company.start("shop", sys.executable, "-c", SERVE_OPENVINO, shop)
    wait_for("the server on OpenVINO", shop / "run" / "server.port")
    awake = time.monotonic() + AWAKE_S
    said += ask(company, planted)
    time.sleep(max(0.0, awake - time.monotonic()))
    company.stop(openvino)

    assert company.hosts.strangers() == set()
    refused = [text for status, text in said if status == 400]
    assert [text for status, text in said if status >= 500] == []
    assert len(refused) >= 20
    assert not [text for text in refused if "Gather" in text or "onnxruntime" in text.lower() or "idx" in text]
    files = written_outside(company, stamp)
    assert company.log in files, "the search looks at what was written"
    assert holding(files, planted) == []
    assert holding([company.log], planted) == []

"""The servers of the serving bench, and one run of load on one of them: one core for the server, one for wrk."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.spoke_agent.serve.sites import Site

__all__ = ["ROOT", "Row", "Serving", "peer", "raw_ort", "run", "spoke", "wrk"]

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CORES = os.cpu_count() or 1
SERVER_CORE, LOAD_CORE = "0", str(min(1, CORES - 1))
EVERY_CORE = f"0-{CORES - 1}"
FIELD = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""As it is in the field: modules are compiled once, at installation."""

Row = dict[str, float]


@dataclass(frozen=True)
class Serving:
    """A server that is up."""

    pid: int
    base: str
    """Its address, without a path."""
    cold_start_s: float = 0.0

    @property
    def url(self) -> str:
        """Where it answers infer requests."""
        return f"{self.base}/v2/models/digits/infer"


@contextmanager
def spoke(site: Site, *words: str, core: str = SERVER_CORE) -> Iterator[Serving]:
    """`spoke serve` as it is run in the field; its port is told when it is ready to answer."""
    port = site.home / "run" / "server.port"
    port.unlink(missing_ok=True)
    program = str(Path(sys.executable).with_name("spoke"))
    started = time.perf_counter()
    command = ["taskset", "-c", core, program, "--home", str(site.home), "serve", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=FIELD)
    try:
        while not port.exists():
            time.sleep(0.001)
        yield Serving(process.pid, f"http://127.0.0.1:{port.read_text()}", time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def peer(name: str, model: Path) -> Iterator[Serving]:
    """One of `peers.py`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "tests.bench.serving.peers", name, str(port), str(model)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.02)
        yield Serving(process.pid, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def raw_ort(model: Path, seconds: float) -> Row:
    """The engine alone, row after row, on the server's core."""
    code = (
        "import json,sys,time,numpy as np\nfrom pathlib import Path\nfrom model_formats.runtimes.onnx import open_onnx\n"
        "s=open_onnx(Path(sys.argv[1]))\nx={'image':np.ones((1,1,8,8),np.float32)}\nend=time.perf_counter()+float(sys.argv[2])\n"
        "n=0\nc=time.process_time();t=time.perf_counter()\n"
        "while time.perf_counter()<end:\n for _ in range(200): s.run(x,['logits'])\n n+=200\n"
        "t=time.perf_counter()-t;c=time.process_time()-c\nprint(json.dumps({'req_s':n/t,'cpu_us':c/n*1e6}))"
    )
    command = ["taskset", "-c", SERVER_CORE, sys.executable, "-c", code, str(model), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)


def run(server: Serving, connections: int, body: Path, seconds: int = 1) -> Row:
    """One run of wrk, and what the server took for it. `answered_s`: requests a second that were not refused."""
    before = _cpu_s(server.pid)
    found = wrk(server.url, connections, body, seconds)
    used = _cpu_s(server.pid) - before
    return found | {
        "req_s": found["requests"] / found["seconds"],
        "answered_s": (found["requests"] - found["failed"]) / found["seconds"],
        "cpu_us": used / found["requests"] * 1e6,
        "peak_rss_mb": _peak_mb(server.pid),
    }


def wrk(url: str, connections: int, body: Path, seconds: int = 1) -> Row:
    """One run on the load's core; times in microseconds."""
    words = ["-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "load.lua"), url]
    env = {**os.environ, "BODY": str(body)}
    text = subprocess.run(["taskset", "-c", LOAD_CORE, "wrk", *words], check=True, capture_output=True, text=True, env=env).stdout
    return json.loads(text.split("RESULT ", 1)[1])


def _cpu_s(pid: int) -> float:
    """User and system time of a process and its children."""
    fields = [Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split() for p in _family(pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    """Peak resident memory of a process and its children."""
    lines = [line for p in _family(pid) for line in Path(f"/proc/{p}/status").read_text().splitlines()]
    return sum(int(text.split()[1]) for text in lines if text.startswith("VmHWM")) / 1024


def _family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

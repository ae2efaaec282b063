"""The servers of the serving bench, and one run of load on one of them: one core for the server, one for wrk."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.house import environment
from tests.spoke_agent.server.sites import Site

__all__ = [
    "EVERY_CORE",
    "ROOT",
    "SERVER_CORE",
    "STRANGERS",
    "Row",
    "Serving",
    "peer",
    "raw_ort",
    "run",
    "spoke",
    "stranger",
    "wrk",
]

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CORES = os.cpu_count() or 1
SERVER_CORE, LOAD_CORE = "0", str(min(1, CORES - 1))
EVERY_CORE = f"0-{CORES - 1}"
FIELD = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""As it is in the field: modules are compiled once, at installation."""

STRANGERS = {
    "mlserver": ("mlserver==1.7.1", "onnxruntime==1.28.0", "uvloop<0.22"),  # it breaks with a later uvloop
    "litserve": ("litserve==0.2.19", "onnxruntime==1.28.0"),
}

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
    """One of `peers.py`, in our environment."""
    port = _free_port()
    with _listening([sys.executable, "-m", "tests.bench.serving.peers", name, str(port), str(model)], port, ROOT) as server:
        yield server


@contextmanager
def stranger(name: str, model: Path, work: Path) -> Iterator[Serving | None]:
    """One of `strangers/`, in its own environment; None (and a line that says why) where that cannot be made."""
    python, why = environment(name, STRANGERS[name])
    if python is None:
        print(f"{name}: not installed: {why}", file=sys.stderr)
        yield None
        return
    port = _free_port()
    with _listening([python, str(HERE / "strangers" / f"{name}_digits.py"), str(port), str(model)], port, work) as server:
        yield server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def _listening(command: list[str], port: int, cwd: Path) -> Iterator[Serving]:
    """A program with all that it starts, from when it listens."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(["taskset", "-c", SERVER_CORE, *command], cwd=cwd, start_new_session=True, **quiet)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)}: ended with status {process.returncode}")
            time.sleep(0.02)
        yield Serving(process.pid, f"http://127.0.0.1:{port}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
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

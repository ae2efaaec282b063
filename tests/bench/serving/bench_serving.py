"""Serving against its peers and its limits, in one run: `python -m tests.bench.serving.bench_serving [SECONDS]`.

One core for the server, one for the load (wrk). Writes `build/bench/serving.json`; ratios are ours over the peer's. Every round
takes turns through all servers, and each figure is the best of its rounds, so that a noisy neighbour harms all alike. A figure
that is a small difference, or a ratio near its limit, is taken in pairs: both sides are up and take turns of a second, which
meet the same machine, and the middle one of the pairs counts. The warm-up spends the burst of rows that capture keeps at once, so
that the figures are those of steady traffic.
"""

import compileall
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TypeVar

import httpx
import numpy as np
import onnx

from model_formats.console import table
from model_formats.contract import FeatureContract, TensorContract
from model_formats.runtimes.choose import open_session
from spoke_agent.serve.client import ControlClient
from spoke_agent.slots import Slot
from tests.spoke_agent.serve.sites import Site, cnn, image

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SERVER_CORE, LOAD_CORE = "0", str(min(1, (os.cpu_count() or 1) - 1))
ROUNDS = 2
PAIRS = 11
T = TypeVar("T")
DEADLINE_US = 50_000
"""What callers ask for under overload: parameter `timeout`."""
MINILM = ROOT / "build" / "bench" / "minilm" / "v1-int8.onnx"
"""Made by `tests.bench.minilm`, where its weights are installed."""
FIELD = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""As it is in the field: modules are compiled once, at installation."""
LAYERS, CHANNELS = 2, 24
"""A CNN of about 15 microseconds for one row."""


def main(seconds: float = 3.0) -> None:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="ss") as folder:
        for room in ("model_formats", "sync", "provisioning", "spoke_agent"):
            compileall.compile_dir(ROOT / room, quiet=1)
        work = Path(folder)
        site = Site(work / "home")
        one, two = (site.publish(v, proto=cnn(v, layers=LAYERS, channels=CHANNELS)) for v in (1, 2))
        site.slots(champion=one)
        bare = Site(work / "bare")
        bare.slots(champion=bare.publish(1, proto=cnn(1, layers=LAYERS, channels=CHANNELS)))
        model = site.weights(one)
        body = work / "body.json"
        x = image(1)
        tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": x.ravel().tolist()}
        body.write_text(json.dumps({"id": "r", "inputs": [tensor]}))
        patient = work / "patient.json"
        patient.write_text(json.dumps({"id": "r", "parameters": {"timeout": DEADLINE_US}, "inputs": [tensor]}))
        rows = compare(site, model, body, seconds) | workers(site, body, seconds)
        ours, raw = rows["spokeshave c32"], rows["raw onnxruntime"]
        ratios = {
            "req_s_c32_over_raw_ort": ours["req_s"] / raw["req_s"],
            "cpu_per_request_c32_over_raw_ort": ours["cpu_us"] / raw["cpu_us"],
            "req_s_c32_over_fastapi": ours["req_s"] / rows["fastapi c32"]["req_s"],
            "req_s_c32_over_uvicorn_asgi": ours["req_s"] / rows["uvicorn asgi c32"]["req_s"],
            "p50_c1_over_noop_same_transport": one_caller(site, model, body),
            "p50_c1_over_noop_best_over_best": rows["spokeshave c1"]["p50_us"] / rows["noop c1"]["p50_us"],
            "capture_cost_us_per_request": capture_cost(site, bare, body),
            "req_s_c256_over_c32": rows["spokeshave c256"]["req_s"] / ours["req_s"],
            "req_s_2_workers_over_1_on_two_cores_shared_with_the_load": rows["2 workers, all cores, c32"]["req_s"]
            / rows["1 worker, all cores, c32"]["req_s"],
            **overload(site, patient),
            "peak_rss_mb": ours["peak_rss_mb"],
            "cold_start_s": rows["spokeshave c1"]["cold_start_s"],
            **swaps(site, [one, two], body, seconds),
            **saturated(work, seconds),
        }
    told = [{"name": name, **row} for name, row in rows.items()]
    out = ROOT / "build" / "bench" / "serving.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"name": "serving", "rows": told, "ratios": ratios}, indent=2))
    table(("server", "req/s", "CPU us/request", "p50 us", "p99 us", "failed"), (line(n, r) for n, r in rows.items()))
    table(("figure", "value"), ((k, f"{v:.3f}") for k, v in ratios.items()))


def one_caller(site: Site, model: Path, body: Path) -> float:
    """What one caller waits, over an answer that is ready."""
    with spoke(site) as (_, ours, _), peer("noop", model) as (_, noop):
        pairs = in_turns(lambda: wrk(ours, 1, body, 1), lambda: wrk(noop, 1, body, 1))
    return median(a["p50_us"] / b["p50_us"] for a, b in pairs)


def capture_cost(site: Site, bare: Site, body: Path) -> float:
    """CPU of a request with capture, less that of one without, in microseconds."""
    with spoke(site) as (one, ours, _), spoke(bare, capture=False) as (other, without, _):
        pairs = in_turns(lambda: cpu_of(one.pid, ours, body), lambda: cpu_of(other.pid, without, body))
    return median(a - b for a, b in pairs)


def cpu_of(pid: int, url: str, body: Path) -> float:
    """CPU of one request of 32 callers, in microseconds."""
    before = cpu_s(pid)
    requests = wrk(url, 32, body, 1)["requests"]
    return (cpu_s(pid) - before) / requests * 1e6


def overload(site: Site, body: Path) -> dict[str, float]:
    """Three times as many callers as saturate the server, over as many as do, each with a deadline."""
    with spoke(site) as (_, url, _):
        pairs = in_turns(lambda: wrk(url, 96, body, 1), lambda: wrk(url, 32, body, 1))
    return {
        "req_s_at_3x_over_best": median(answered_s(a) / answered_s(b) for a, b in pairs),
        "p99_at_3x_over_deadline": median(a["p99_us"] for a, _ in pairs) / DEADLINE_US,
    }


def answered_s(row: dict[str, float]) -> float:
    """Requests a second that were not refused."""
    return (row["requests"] - row["failed"]) / row["seconds"]


def in_turns(one: Callable[[], T], other: Callable[[], T]) -> list[tuple[T, T]]:
    """Pairs of runs, one right after the other; the first pair warms up and is left out."""
    return [(one(), other()) for _ in range(PAIRS + 1)][1:]


def workers(site: Site, body: Path, seconds: float) -> dict[str, dict[str, float]]:
    """One server process and two on one port, free to use every core; the load takes its core from them."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for name, count in (("1 worker, all cores, c32", 1), ("2 workers, all cores, c32", 2)):
            with spoke(site, "--workers", str(count), core=f"0-{(os.cpu_count() or 1) - 1}") as (process, url, _):
                found.setdefault(name, []).append(measured(process.pid, url, 32, body, seconds))
    return {name: best(rows) for name, rows in found.items()}


def line(name: str, row: dict[str, float]) -> list[str]:
    """One row of the table."""
    keys = ("req_s", "cpu_us", "p50_us", "p99_us", "failed")
    return [name, *(f"{row[k]:.1f}" if k in row else "" for k in keys)]


def compare(site: Site, model: Path, body: Path, seconds: float) -> dict[str, dict[str, float]]:
    """All servers, in turns."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        found.setdefault("raw onnxruntime", []).append(raw_ort(model, seconds))
        with spoke(site) as (process, url, cold):
            for c in (1, 32, 256):
                row = measured(process.pid, url, c, body, seconds)
                found.setdefault(f"spokeshave c{c}", []).append({**row, "cold_start_s": cold})
        for name, label in (("noop", "noop"), ("asgi", "uvicorn asgi"), ("fastapi", "fastapi")):
            with peer(name, model) as (process, url):
                for c in (1, 32):
                    found.setdefault(f"{label} c{c}", []).append(measured(process.pid, url, c, body, seconds))
    return {name: best(rows) for name, rows in found.items()}


def best(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure the best round; failures are added up and memory is the worst."""
    found = {key: min(row[key] for row in rows) for key in rows[0]}
    found["req_s"] = max(row["req_s"] for row in rows)
    for key, whole in (("failed", sum), ("peak_rss_mb", max)):
        if key in found:
            found[key] = whole(row[key] for row in rows)
    return found


def raw_ort(model: Path, seconds: float) -> dict[str, float]:
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


@contextmanager
def spoke(
    site: Site, *words: str, capture: bool = True, core: str = SERVER_CORE
) -> Iterator[tuple[subprocess.Popen, str, float]]:
    """`spoke serve` as it is run in the field."""
    port = site.home / "run" / "server.port"
    port.unlink(missing_ok=True)
    program = str(Path(sys.executable).with_name("spoke"))
    started = time.perf_counter()
    process = subprocess.Popen(
        ["taskset", "-c", core, program, "--home", str(site.home), "serve", *words, *([] if capture else ["--no-capture"])],
        stderr=subprocess.DEVNULL,
        env=FIELD,
    )
    try:
        while not port.exists():
            time.sleep(0.001)
        yield process, f"http://127.0.0.1:{port.read_text()}/v2/models/digits/infer", time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


@contextmanager
def peer(name: str, model: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """One of `peers.py`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "tests.bench.serving.peers", name, str(port), str(model)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.02)
        yield process, f"http://127.0.0.1:{port}/v2/models/digits/infer"
    finally:
        process.terminate()
        process.wait()


def measured(pid: int, url: str, connections: int, body: Path, seconds: float) -> dict[str, float]:
    """A short warm-up, then one run of wrk; CPU of the server from /proc."""
    wrk(url, connections, body, 1)
    before = cpu_s(pid)
    found = wrk(url, connections, body, seconds)
    used = cpu_s(pid) - before
    found |= {
        "req_s": found["requests"] / found["seconds"],
        "cpu_us": used / found["requests"] * 1e6,
        "peak_rss_mb": peak_mb(pid),
    }
    return found


def wrk(url: str, connections: int, body: Path | None, seconds: float, method: str = "POST") -> dict[str, float]:
    """One run on the load's core."""
    command = [
        "taskset",
        "-c",
        LOAD_CORE,
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:.3f}s",
        "-s",
        str(HERE / "load.lua"),
        url,
    ]
    command[command.index(f"-d{seconds:.3f}s")] = f"-d{max(1, round(seconds))}s"
    env = {**os.environ, "METHOD": method, **({"BODY": str(body)} if body else {})}
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return json.loads(text.split("RESULT ", 1)[1])


def swaps(site: Site, slots: list, body: Path, seconds: float) -> dict[str, float]:
    """Twenty swaps under load; what a caller waited at most, and how many were failed."""
    with spoke(site) as (_, url, _):
        wrk(url, 8, body, 1)
        control = ControlClient(site.home / "run" / "control.sock")
        found: dict[str, float] = {}
        load = threading.Thread(target=lambda: found.update(wrk(url, 8, body, max(4.0, seconds))))
        load.start()
        took = []
        for i in range(1, 21):
            site.slots(champion=slots[i % 2])
            took.append(control.reconcile().models["digits"].swap_ms or 0.0)
            time.sleep(0.05)
        load.join()
    return {
        "swaps_under_load_failed": found["failed"],
        "swap_max_stall_ms": found["max_us"] / 1e3,
        "swap_ms_median": float(np.median(took)),
    }


def saturated(work: Path, seconds: float) -> dict[str, float]:
    """Health while a model of several milliseconds a row is at full load: MiniLM where it is built, else a CNN as slow."""
    site = Site(work / "heavy")
    slot, (name, x, datatype) = _heavy(site)
    site.slots(champion=slot)
    row_ms = _row_ms(site.weights(slot), {name: x})
    body = work / "heavy.json"
    tensor = {"name": name, "shape": x.shape, "datatype": datatype, "data": x.ravel().tolist()}
    body.write_text(json.dumps({"inputs": [tensor]}))
    with spoke(site) as (_, url, _):
        load = threading.Thread(target=lambda: wrk(url, 16, body, seconds + 1))
        load.start()
        base = url.removesuffix("/v2/models/digits/infer")
        times = []
        with httpx.Client(base_url=base) as http:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                started = time.perf_counter()
                http.get("/v2/health/ready").raise_for_status()
                times.append(time.perf_counter() - started)
                time.sleep(0.005)
        load.join()
    return {
        "health_p95_ms_while_saturated": float(np.percentile(times, 95)) * 1e3,
        "saturating_model_is_minilm": float(MINILM.exists()),
        "saturating_model_ms": row_ms,
    }


def _heavy(site: Site) -> tuple[Slot, tuple[str, np.ndarray, str]]:
    if not MINILM.exists():
        return site.publish(1, proto=cnn(1, layers=30, channels=160)), ("image", image(1), "FP32")
    proto = onnx.load(MINILM)
    name, x = proto.graph.input[0].name, np.random.default_rng(0).integers(1, 30_000, (1, 32))
    contract = FeatureContract(
        task="classification",
        inputs=(TensorContract(name=name, datatype="INT64", shape=(-1, 32)),),
        outputs=(TensorContract(name=proto.graph.output[0].name, datatype="FP32", shape=(-1, 8)),),
        classes=tuple("abcdefgh"),
    )
    return site.publish(1, proto=proto, contract=contract, golden_inputs={name: x}), (name, x, "INT64")


def _row_ms(model: Path, inputs: dict[str, np.ndarray]) -> float:
    session = open_session(model)
    started = time.perf_counter()
    for _ in range(10):
        session.run(inputs)
    return (time.perf_counter() - started) * 100


def cpu_s(pid: int) -> float:
    """User and system time of a process and its children."""
    fields = [Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split() for p in family(pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process and its children."""
    lines = [line for p in family(pid) for line in Path(f"/proc/{p}/status").read_text().splitlines()]
    return sum(int(text.split()[1]) for text in lines if text.startswith("VmHWM")) / 1024


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:]))

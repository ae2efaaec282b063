"""gRPC against the servers that grpcio offers, in one run: `python -m tests.bench.grpc [SECONDS]`. Writes build/bench/grpc.json.

Peers, each written as fairly as possible with the same messages, the same 15-microsecond model and one core: grpcio's blocking
server on 4 and on 16 threads and its asyncio server (uvloop), with the model run at once in the method, and answering a ready
answer (`noop`). The load is one process on the other core with 32 calls under way. Ours captures rows as in the
field. Every round takes turns through all servers, and a ratio is that of the middle round, each side at the pace its core had:
the best of many peers in a few rounds would be whoever met the quickest second.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import grpc
import numpy as np

from model_formats.core.console import table
from spoke_agent.server.grpc.messages import MESSAGES, SERVICE
from tests.bench.house import Pace, at_pace
from tests.spoke_agent.server.sites import Site, cnn, image

ROOT = Path(__file__).parents[2]
SERVER_CORE, LOAD_CORE = "0", str(min(1, (os.cpu_count() or 1) - 1))
ROUNDS, CONCURRENT = 4, 32
INFER = f"/{SERVICE}/ModelInfer"
OURS = "spokeshave"
PEERS = ("sync4", "sync16", "aio", "sync4 noop", "aio noop")
COLUMNS = ("req_s", "cpu_us", "p50_us", "p99_us")

Row = dict[str, float]


def main(seconds: float = 0.8) -> None:
    with tempfile.TemporaryDirectory(prefix="ss") as folder, ExitStack() as up:
        site = Site(Path(folder) / "home")
        slot = site.publish(1, proto=cnn(1, layers=2, channels=24))
        site.slots(champion=slot)
        servers = {OURS: up.enter_context(spoke(site))}
        servers |= {name: up.enter_context(peer(name, site.weights(slot))) for name in PEERS}
        pace = up.enter_context(Pace(SERVER_CORE))
        measured(*servers[OURS], CONCURRENT, 3.0)  # spends the burst of rows that capture keeps at once
        columns = {
            f"{name} c{c}": partial(measured, *server, c, seconds) for c in (1, CONCURRENT) for name, server in servers.items()
        }
        turns = [{name: pace.told(column, tries=2) for name, column in columns.items()} for _ in range(1 + ROUNDS)][1:]
    real, noop = PEERS[:3], PEERS[3:]
    many, alone = partial(over, turns, "req_s", CONCURRENT), partial(over, turns, "p50_us", 1)
    ratios = {
        "grpc_req_s_over_best_of_sync_and_aio": min(many(OURS, name) for name in real),
        "grpc_req_s_over_best_noop": min(many(OURS, name) for name in noop),
        "sync_over_aio": max(many(name, "aio") for name in ("sync4", "sync16")),
        "grpc_p50_c1_over_best_of_sync_and_aio": max(alone(OURS, name) for name in real),
    }
    rows = {name: {key: median(turn[name][key] for turn in turns) for key in COLUMNS} for name in columns}
    told = [{"name": name, **row} for name, row in rows.items()]
    out = ROOT / "build" / "bench" / "grpc.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"name": "grpc", "rows": told, "ratios": ratios}, indent=2))
    table(
        ("server", "req/s", "CPU us/request", "p50 us", "p99 us"),
        ([n, *(f"{v:.1f}" for v in r.values())] for n, r in rows.items()),
    )
    table(("figure", "value"), ((k, f"{v:.3f}") for k, v in ratios.items()))


def over(turns: Sequence[Mapping[str, Row]], key: str, calls: int, one: str, other: str) -> float:
    """One server over another, within a round."""
    one, other = f"{one} c{calls}", f"{other} c{calls}"
    return median(at_pace(turn[one], key) / at_pace(turn[other], key) for turn in turns)


@contextmanager
def spoke(site: Site, *extra: str) -> Iterator[tuple[int, int]]:
    """`spoke serve` as it is run in the field, capture on."""
    path = site.home / "run" / "grpc.port"
    program = str(Path(sys.executable).with_name("spoke"))
    command = ["taskset", "-c", SERVER_CORE, program, "--home", str(site.home), "serve", "--grpc-port", "0", *extra]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not path.exists():
            time.sleep(0.01)
        yield process.pid, int(path.read_text())
    finally:
        process.terminate()
        process.wait()


@contextmanager
def peer(name: str, model: Path) -> Iterator[tuple[int, int]]:
    """One of grpcio's own servers, in a process of its own."""
    command = ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "tests.bench.grpc", "serve", name, str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def measured(pid: int, port: int, calls: int, seconds: float) -> Row:
    """Requests a second, the server's CPU for one, and latencies, with `calls` under way at a time."""
    command = ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "tests.bench.grpc", "load", str(port), str(calls), str(seconds)]
    subprocess.run([*command[:-1], "0.2"], check=True, capture_output=True, cwd=ROOT)
    before = cpu(pid)
    row = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
    return {
        "req_s": row["req_s"],
        "cpu_us": (cpu(pid) - before) / row["done"] * 1e6,
        "p50_us": row["p50_us"],
        "p99_us": row["p99_us"],
    }


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int, calls: int, seconds: float) -> None:
    """Keep `calls` requests under way without a thread for each."""
    x = image(1)
    request = MESSAGES["ModelInferRequest"](model_name="digits", id="r", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=x.shape)
    body = request.SerializeToString()
    times: list[float] = []
    ended = threading.Semaphore(0)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(INFER)
        call(body)
        start = time.perf_counter()
        end = start + seconds

        def ask() -> None:
            began = time.perf_counter()

            def told(future: grpc.Future) -> None:
                assert future.exception() is None
                now = time.perf_counter()
                times.append(now - began)
                ask() if now < end else ended.release()

            call.future(body).add_done_callback(told)

        for _ in range(calls):
            ask()
        for _ in range(calls):
            ended.acquire()
        took = time.perf_counter() - start
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e6
    print(json.dumps({"req_s": len(times) / took, "done": len(times), "p50_us": p50, "p99_us": p99}))


def serve(name: str, model: Path) -> None:
    """A peer: the least that answers the protocol."""
    from concurrent.futures import ThreadPoolExecutor

    from model_formats.runtimes.onnx import open_onnx

    session = open_onnx(model)
    request_of, answer_of = MESSAGES["ModelInferRequest"].FromString, MESSAGES["ModelInferResponse"]

    def infer(request, _=None):
        tensor = request.inputs[0]
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tensor.shape)
        y = session.run({"image": x}, ["logits"])[0]
        answer = answer_of(model_name="digits", model_version="1", id=request.id, raw_output_contents=[y.tobytes()])
        answer.outputs.add(name="logits", datatype="FP32", shape=y.shape)
        return answer

    ready = infer(MESSAGES["ModelInferRequest"](inputs=[{"shape": [1, 1, 8, 8]}], raw_input_contents=[image(1).tobytes()]))
    method = (lambda *_: ready) if "noop" in name else infer

    def handlers(behaviour):
        handler = grpc.unary_unary_rpc_method_handler(behaviour, request_of, answer_of.SerializeToString)
        return (grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),)

    if name.startswith("aio"):
        import uvloop

        async def run() -> None:
            async def behaviour(request, context):
                return method(request)

            server = grpc.aio.server()
            server.add_generic_rpc_handlers(handlers(behaviour))
            print(server.add_insecure_port("127.0.0.1:0"), flush=True)
            await server.start()
            await server.wait_for_termination()

        uvloop.run(run())
        return
    server = grpc.server(ThreadPoolExecutor(int(name.split()[0].removeprefix("sync"))))
    server.add_generic_rpc_handlers(handlers(method))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", name, model]:
            serve(name, Path(model))
        case ["load", port, calls, seconds]:
            load(int(port), int(calls), float(seconds))
        case given:
            main(*(float(v) for v in given))

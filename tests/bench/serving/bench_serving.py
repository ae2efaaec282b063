"""Serving against its peers and its limits, in one run: `python -m tests.bench.serving [ROUNDS]`.

Writes `build/bench/serving.json`; ratios are ours over the peer's. All servers are up at once and take turns of a second, ours
with the whole protocol and drift capture. A ratio is taken within its round, each side at the pace its core had at that moment
(`house.Pace`), and the middle one of the rounds counts; so does the middle one of each column of the table, as measured. The
first round only warms up. Times that are no ratios (a cold start, a stall) are told as measured; of the cold starts before,
between and after, the quickest counts. The model is the CNN that comes nearest to 15 microseconds a row on this machine. MLServer
and LitServe stand beside where they can be installed.
"""

import compileall
import json
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import onnx

from model_formats.core.console import table
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.runtimes.select import open_session
from spoke_agent.server_api.client import ControlClient
from spoke_agent.site.slots import Slot, read_slots
from tests.bench.house import WORK_US, Pace, at_pace
from tests.bench.serving.servers import (
    EVERY_CORE,
    ROOT,
    SERVER_CORE,
    STRANGERS,
    Row,
    Serving,
    peer,
    raw_ort,
    run,
    spoke,
    stranger,
    wrk,
)
from tests.spoke_agent.server.sites import Site, cnn, image

ROUNDS = 9
STARTS = 4
"""Cold starts, at each of three times."""
CAPTURE_STARTS = 4
DEADLINE_US = 50_000
"""What callers ask for under overload: parameter `timeout`."""
MINILM = ROOT / "build" / "bench" / "minilm" / "v1-int8.onnx"
"""Made by `tests.bench.minilm`, where its weights are installed."""
ROW_US = 15
SIZES = ((1, 16), (2, 16), (2, 24), (2, 32), (3, 32))
"""Layers and channels of CNNs of 7 to 50 microseconds a row, as the machine has it."""
TURN, TURNS = 200, 100
"""Runs of each of them in a turn, and turns."""

Rounds = Sequence[Mapping[str, Row]]
Cnn = Callable[[int], onnx.ModelProto]
"""Version to model."""


def main(rounds: int = ROUNDS) -> None:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="ss") as folder:
        for room in ("model_formats", "sync", "provisioning", "spoke_agent"):
            compileall.compile_dir(ROOT / room, quiet=1)
        work = Path(folder)
        model, row_us = nearest(work / "sizes")
        site = _site(work / "home", model)
        body, patient = _body(work / "body.json"), _body(work / "patient.json", timeout=DEADLINE_US)
        starts = [*_cold_starts_s(site)]
        with Pace(SERVER_CORE) as pace:
            turns = compared(work, model, site, (body, patient), rounds, pace)
            starts += _cold_starts_s(site)
            capture_us = capture_cost(site, _site(work / "bare", model), body, rounds // 2, pace)
            starts += _cold_starts_s(site)
        ratios = {
            **figures(turns),
            "capture_cost_us_per_request": capture_us,
            "cold_start_s": min(starts),
            "model_row_us": row_us,
            **swaps(site, model, body),
            **saturated(work),
        }
    rows = {name: middle([turn[name] for turn in turns]) for name in turns[0]}
    out = ROOT / "build" / "bench" / "serving.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    told = [{"name": name, **row} for name, row in rows.items()]
    out.write_text(json.dumps({"name": "serving", "rows": told, "ratios": ratios}, indent=2))
    table(("server", "req/s", "CPU us/request", "p50 us", "p99 us", "failed"), (_line(n, r) for n, r in rows.items()))
    table(("figure", "value"), ((k, f"{v:.3f}") for k, v in ratios.items()))


def compared(work: Path, model: Cnn, site: Site, bodies: tuple[Path, Path], rounds: int, pace: Pace) -> Rounds:
    """All servers, in turns; what is set beside each other comes right after each other."""
    body, patient = bodies
    with ExitStack() as up:
        file = site.weights(first(site))
        ours = up.enter_context(spoke(site))
        many = up.enter_context(spoke(_site(work / "many", model)))
        one = up.enter_context(spoke(_site(work / "one", model), "--workers", "1", core=EVERY_CORE))
        two = up.enter_context(spoke(_site(work / "two", model), "--workers", "2", core=EVERY_CORE))
        headless = up.enter_context(spoke(_site(work / "headless", model), "--without-cache", "heads"))
        wordless = up.enter_context(spoke(_site(work / "wordless", model), "--without-cache", "templates"))
        noop, asgi, fastapi = (up.enter_context(peer(name, file)) for name in ("noop", "asgi", "fastapi"))
        columns = {
            "raw onnxruntime": partial(raw_ort, file, 1),
            "spokeshave c32": partial(settled, ours, 32, body),
            "spokeshave c32, no head cache": partial(settled, headless, 32, body),
            "spokeshave c32, no template cache": partial(settled, wordless, 32, body),
            "uvicorn asgi c32": partial(run, asgi, 32, body),
            "fastapi c32": partial(run, fastapi, 32, body),
            "noop c32": partial(run, noop, 32, body),
            "spokeshave c32, deadline": partial(settled, many, 32, patient),
            "spokeshave c96, deadline": partial(run, many, 96, patient),
            "spokeshave c256": partial(run, many, 256, body),
            "spokeshave c1": partial(settled, ours, 1, body),
            "spokeshave c1, no head cache": partial(settled, headless, 1, body),
            "spokeshave c1, no template cache": partial(settled, wordless, 1, body),
            "noop c1": partial(run, noop, 1, body),
            "uvicorn asgi c1": partial(run, asgi, 1, body),
            "fastapi c1": partial(run, fastapi, 1, body),
            "1 worker, all cores, c32": partial(settled, one, 32, body),
            "2 workers, all cores, c32": partial(settled, two, 32, body),
        }
        for name in STRANGERS:
            server = up.enter_context(stranger(name, file, work))
            if server is not None:
                columns[f"{name} c32"] = partial(run, server, 32, body)
        return [{name: pace.told(column) for name, column in columns.items()} for _ in range(rounds + 1)][1:]


def settled(server: Serving, connections: int, body: Path) -> Row:
    """A run right after another: after a quiet time, capture keeps more rows than in the long run."""
    wrk(server.url, connections, body)
    return run(server, connections, body)


def figures(turns: Rounds) -> dict[str, float]:
    """What the issue of serving asks for, and what stands beside it."""

    def over(key: str, name: str, other: str) -> float:
        return median(at_pace(turn[name], key) / at_pace(turn[other], key) for turn in turns)

    raw, ours, deadline = "raw onnxruntime", "spokeshave c32", "spokeshave c32, deadline"
    strangers = [name for name in STRANGERS if f"{name} c32" in turns[0]]
    return {
        "req_s_c32_over_raw_ort": over("req_s", ours, raw),
        "cpu_per_request_c32_over_raw_ort": over("cpu_us", ours, raw),
        "req_s_c32_over_fastapi": over("req_s", ours, "fastapi c32"),
        "req_s_c32_over_uvicorn_asgi": over("req_s", ours, "uvicorn asgi c32"),
        **{f"req_s_c32_over_{name}": over("req_s", ours, f"{name} c32") for name in strangers},
        "p50_c1_over_noop_same_transport": over("p50_us", "spokeshave c1", "noop c1"),
        "cpu_c32_without_head_cache_over_with": over("cpu_us", f"{ours}, no head cache", ours),
        "cpu_c32_without_template_cache_over_with": over("cpu_us", f"{ours}, no template cache", ours),
        "p50_c1_without_head_cache_over_with": over("p50_us", "spokeshave c1, no head cache", "spokeshave c1"),
        "p50_c1_without_template_cache_over_with": over("p50_us", "spokeshave c1, no template cache", "spokeshave c1"),
        "req_s_c256_over_c32": over("req_s", "spokeshave c256", ours),
        "req_s_2_workers_over_1_on_two_cores_shared_with_the_load": over(
            "req_s", "2 workers, all cores, c32", "1 worker, all cores, c32"
        ),
        "req_s_at_3x_over_best": over("answered_s", "spokeshave c96, deadline", deadline),
        "p99_at_3x_over_deadline": median(t["spokeshave c96, deadline"]["p99_us"] for t in turns) / DEADLINE_US,
        "peak_rss_mb": max(t[ours]["peak_rss_mb"] for t in turns),
        "peak_rss_mb_c256": max(t["spokeshave c256"]["peak_rss_mb"] for t in turns),
    }


def capture_cost(site: Site, bare_site: Site, body: Path, pairs: int, pace: Pace) -> float:
    """CPU of a request with capture, less that of one without, in microseconds.

    A difference of a fortieth of what either takes needs more pairs than a ratio, of several starts (how things come to lie in
    memory makes as much), and both sides in turns of their own, so that capture never has a quiet time to make up for.
    """
    turns = []
    for _ in range(CAPTURE_STARTS):
        with spoke(site) as ours, spoke(bare_site, "--no-capture") as bare:
            found = [[pace.told(partial(run, server, 32, body)) for server in (ours, bare)] for _ in range(1 + pairs)]
        turns += found[1:]
    work_us = median(row[WORK_US] for turn in turns for row in turn)
    return median(at_pace(one, "cpu_us") - at_pace(other, "cpu_us") for one, other in turns) * work_us


def middle(rows: Sequence[Row]) -> Row:
    """Of each column the middle round; failures are added up and memory is the worst."""
    wholes = {"failed": sum, "peak_rss_mb": max}
    return {key: wholes.get(key, median)([row[key] for row in rows]) for key in rows[0]}


def swaps(site: Site, model: Cnn, body: Path) -> dict[str, float]:
    """Twenty swaps under load; what a caller waited at most, and how many were failed."""
    slots = [first(site), site.publish(2, proto=model(2))]
    with spoke(site) as server:
        wrk(server.url, 8, body)
        control = ControlClient(site.home / "run" / "control.sock")
        found: Row = {}
        load = threading.Thread(target=lambda: found.update(wrk(server.url, 8, body, 4)))
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
        "swap_ms_median": median(took),
    }


def saturated(work: Path, seconds: int = 3) -> dict[str, float]:
    """Health while a model of several milliseconds a row is at full load: MiniLM where it is built, else a CNN as slow."""
    site = Site(work / "heavy")
    slot, (name, x, datatype) = _heavy(site)
    site.slots(champion=slot)
    row_s = _row_s(site.weights(slot), {name: x})
    body = work / "heavy.json"
    tensor = {"name": name, "shape": x.shape, "datatype": datatype, "data": x.ravel().tolist()}
    body.write_text(json.dumps({"inputs": [tensor]}))
    with spoke(site) as server:
        load = threading.Thread(target=lambda: wrk(server.url, 16, body, seconds + 1))
        load.start()
        times = []
        with httpx.Client(base_url=server.base) as http:
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
        "saturating_model_ms": row_s * 1e3,
    }


def first(site: Site) -> Slot:
    """The version that the site began with."""
    slot = read_slots(site.home / "slots.json").models["digits"].champion
    assert slot is not None
    return slot


def nearest(folder: Path) -> tuple[Cnn, float]:
    """The CNN that takes nearest to `ROW_US` a row here, and what it takes.

    They take turns, for seconds and not each in a moment of its own, and the middle turn counts: the machine's pace changes.
    """
    folder.mkdir()
    models, inputs, sessions = [partial(cnn, layers=a, channels=b) for a, b in SIZES], {"image": image(1)}, []
    for place, model in enumerate(models):
        onnx.save(model(1), folder / f"{place}.onnx")
        sessions.append(open_session(folder / f"{place}.onnx"))
    turns = [[timeit.timeit(partial(s.run, inputs), number=TURN) / TURN * 1e6 for s in sessions] for _ in range(TURNS)]
    took = [median(of_one) for of_one in zip(*turns, strict=True)]
    row_us, model = min(zip(took, models, strict=True), key=lambda t: abs(t[0] - ROW_US))
    return model, row_us


def _site(home: Path, model: Cnn) -> Site:
    site = Site(home)
    site.slots(champion=site.publish(1, proto=model(1)))
    return site


def _body(path: Path, **parameters: object) -> Path:
    """One request, with the parameters given."""
    x = image(1)
    tensor = {"name": "image", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    asked = {"parameters": parameters} if parameters else {}
    path.write_text(json.dumps({"id": "r", **asked, "inputs": [tensor]}))
    return path


def _cold_starts_s(site: Site) -> Iterator[float]:
    for _ in range(STARTS):
        with spoke(site) as server:
            yield server.cold_start_s


def _line(name: str, row: Row) -> list[str]:
    keys = ("req_s", "cpu_us", "p50_us", "p99_us", "failed")
    return [name, *(f"{row[k]:.1f}" if k in row else "" for k in keys)]


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


def _row_s(model: Path, inputs: dict[str, np.ndarray]) -> float:
    """What a run takes: the quickest of twenty handfuls."""
    session = open_session(model)
    return min(timeit.repeat(lambda: session.run(inputs), number=10, repeat=20)) / 10

"""Measures latency, processor time and memory of a model file on this machine."""

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from model_formats.core.runtime import Array, Engine, Session
from model_formats.runtimes.select import open_session

__all__ = ["Speed", "cpu_name", "is_slower", "measure_speed", "peak_rss_mb"]

_FASTER = 0.95
"""Less than this saves nothing that another day's noise would not take back."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds a call: medians of wall time, mean of processor time."""

    latency_ms_batch1: float
    latency_ms_batch32: float
    cpu_ms_batch32: float


def measure_speed(session: Session, inputs: Mapping[str, Array], *, budget_s: float = 0.25) -> Speed:
    """Time batches of 1 and 32 of these rows (repeated when fewer), about `budget_s` each."""
    wall1, _ = _time(session, _batch(inputs, 1), budget_s)
    wall32, cpu32 = _time(session, _batch(inputs, 32), budget_s)
    return Speed(wall1, wall32, cpu32)


def is_slower(session: Session, reference: Session, inputs: Mapping[str, Array], *, rounds: int = 40) -> bool:
    """True when it is not faster, by a twentieth at least, for one row nor for 32.

    Both run in turns and the best of each counts: a busy machine is fair to both.
    """
    return all(_best(session, reference, _batch(inputs, rows), rounds) for rows in (1, 32))


def _best(session: Session, reference: Session, batch: Mapping[str, Array], rounds: int) -> bool:
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i, one in enumerate((session, reference)):
            start = time.perf_counter()
            one.run(batch)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] > _FASTER * best[1]


def peak_rss_mb(path: Path, inputs: Mapping[str, Array], *, engine: Engine = "onnxruntime") -> float | None:
    """Peak memory of a fresh process that opens the file and runs one row; None where it cannot be measured."""
    shapes = ";".join(f"{n}:{a.dtype.str}:{','.join(map(str, a.shape[1:]))}" for n, a in inputs.items())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "model_formats.runtimes.benchmark", str(path), engine, shapes],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return round(float(done.stdout), 1)
    except (subprocess.SubprocessError, OSError, ValueError):  # evidence goes without: some machines forbid child processes
        return None


def cpu_name() -> str:
    """The processor, in its maker's words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _batch(inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    return {n: np.ascontiguousarray(np.resize(a, (rows, *a.shape[1:])) if len(a) < rows else a[:rows]) for n, a in inputs.items()}


def _time(session: Session, batch: Mapping[str, Array], budget_s: float) -> tuple[float, float]:
    session.run(batch)
    walls: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    while len(walls) < 5 or (time.perf_counter() - began < budget_s and len(walls) < 500):
        start = time.perf_counter()
        session.run(batch)
        walls.append(time.perf_counter() - start)
    return median(walls) * 1e3, (time.process_time() - cpu) / len(walls) * 1e3


def _main(path: str, engine: Engine, shapes: str) -> None:
    parts = [part.split(":") for part in shapes.split(";")]
    row = {n: np.zeros((1, *(int(d) for d in dims.split(",") if d)), np.dtype(dtype)) for n, dtype, dims in parts}
    open_session(Path(path), engine=engine).run(row)
    sys.stdout.write(_high_water())


def _high_water() -> str:
    """Megabytes, from /proc: `ru_maxrss` would tell the parent's peak, since it survives the exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return str(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)


if __name__ == "__main__":
    _main(sys.argv[1], "openvino" if sys.argv[2] == "openvino" else "onnxruntime", sys.argv[3])

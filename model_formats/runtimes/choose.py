"""Open a model with an engine, and choose the engine by measuring, only among those that give the golden outputs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from msgspec import Struct

from model_formats.errors import SpokeshaveError
from model_formats.golden import Golden, GoldenMismatch, GoldenResult, check_golden
from model_formats.runtimes.base import Engine, Session

__all__ = ["EngineTrial", "choose_engine", "open_session", "try_engines"]


def open_session(path: Path, *, engine: Engine = "onnxruntime", threads: int = 1, allow_bf16: bool = False) -> Session:
    """Open a model file. Raises LoadFailed, EngineMissing."""
    if engine == "openvino":
        from model_formats.runtimes.openvino import open_openvino

        return open_openvino(path, threads=threads, allow_bf16=allow_bf16)
    from model_formats.runtimes.onnx import open_onnx

    return open_onnx(path, threads=threads)


class EngineTrial(Struct, frozen=True):
    """What one engine did here with one file."""

    engine: Engine
    golden: GoldenResult | None
    latency_ms: float | None
    """Median of the timed runs of the first golden row."""
    error: str | None = None
    """Why it did not run at all."""

    @property
    def usable(self) -> bool:
        """It ran and gave the golden outputs."""
        return self.golden is not None and self.golden.ok


def choose_engine(
    path: Path,
    engines: Sequence[Engine],
    golden: Golden,
    variant: str | None = None,
    *,
    threads: int = 1,
    allow_bf16: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Engine:
    """The fastest engine whose outputs match the golden vectors. Raises GoldenMismatch with what each one did when none does."""
    trials = try_engines(path, engines, golden, variant, threads=threads, allow_bf16=allow_bf16, clock=clock)
    usable = [t for t in trials if t.usable]
    if not usable:
        told = "; ".join(f"{t.engine}: {t.error or (t.golden.detail if t.golden else 'not tried')}" for t in trials)
        raise GoldenMismatch(f"{path.name}: no engine here gives the golden outputs: {told}")
    return min(usable, key=lambda t: t.latency_ms or 0.0).engine


def try_engines(
    path: Path,
    engines: Sequence[Engine],
    golden: Golden,
    variant: str | None = None,
    *,
    threads: int = 1,
    allow_bf16: bool = False,
    runs: int = 40,
    clock: Callable[[], float] = time.perf_counter,
) -> list[EngineTrial]:
    """Open, check and time each engine; one that fails is reported, not raised. Runs stop early after 0.2 s an engine."""

    def trial(engine: Engine) -> EngineTrial:
        try:
            session = open_session(path, engine=engine, threads=threads, allow_bf16=allow_bf16)
            result = check_golden(session, golden, variant)
            return EngineTrial(engine, result, _median_ms(session, golden, runs, clock) if result.ok else None)
        except SpokeshaveError as e:
            return EngineTrial(engine, None, None, e.message)

    return [trial(engine) for engine in engines]


def _median_ms(session: Session, golden: Golden, runs: int, clock: Callable[[], float]) -> float:
    row = {name: array[:1] for name, array in golden.inputs.items()}
    times: list[float] = []
    began = clock()
    while len(times) < runs and (len(times) < 3 or clock() - began < 0.2):
        start = clock()
        session.run(row)
        times.append(clock() - start)
    return median(times) * 1e3

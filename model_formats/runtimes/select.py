"""Opens a model, and chooses engine and mode: the fastest of those that give the golden outputs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from msgspec import Struct

from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Candidate, Engine, LoadFailed, Mode, Session
from model_formats.package.golden import Golden, GoldenMismatch, GoldenResult, check_golden

__all__ = ["EngineTrial", "choose_engine", "open_exact", "open_session", "try_engines"]


def open_session(
    path: Path, *, engine: Engine = "onnxruntime", mode: Mode = "fast", threads: int = 1, allow_bf16: bool = False
) -> Session:
    """Open a model file; OpenVINO knows one mode only. Raises LoadFailed, EngineMissing."""
    if engine == "openvino":
        from model_formats.runtimes.openvino import open_openvino

        return open_openvino(path, threads=threads, allow_bf16=allow_bf16)
    from model_formats.runtimes.onnx import open_onnx

    return open_onnx(path, threads=threads, mode=mode)


def open_exact(path: Path) -> Session:
    """An ONNX file in exact mode, for what must be as on every CPU; in the fast one where ONNX Runtime cannot open it so.

    It cannot where two nodes share a signed weight: it tries to replace the weight twice. Raises LoadFailed.
    """
    try:
        return open_session(path, mode="exact")
    except LoadFailed:
        return open_session(path)


class EngineTrial(Struct, frozen=True):
    """What one candidate did here with one file."""

    candidate: Candidate
    golden: GoldenResult | None
    latency_ms: float | None
    """Median of the timed runs of the first golden row."""
    error: str | None = None
    """Why it did not run at all."""

    @property
    def engine(self) -> Engine:
        """Which engine."""
        return self.candidate.engine

    @property
    def mode(self) -> Mode:
        """How it summed."""
        return self.candidate.mode

    @property
    def usable(self) -> bool:
        """It ran and gave the golden outputs."""
        return self.golden is not None and self.golden.ok

    def __str__(self) -> str:
        """For people: `onnxruntime (exact): all outputs agree`."""
        found = self.error or (self.golden.detail if self.golden else "not tried")
        return f"{self.engine}{' (exact)' if self.mode == 'exact' else ''}: {found}"


def choose_engine(
    path: Path,
    tried: Sequence[Candidate],
    golden: Golden,
    variant: str | None = None,
    *,
    threads: int = 1,
    allow_bf16: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Candidate:
    """The fastest candidate that gives the golden outputs. Raises GoldenMismatch with what each one did when none does."""
    trials = try_engines(path, tried, golden, variant, threads=threads, allow_bf16=allow_bf16, clock=clock)
    usable = [t for t in trials if t.usable]
    if not usable:
        raise GoldenMismatch(f"{path.name}: no engine here gives the golden outputs: {'; '.join(map(str, trials))}")
    return min(usable, key=lambda t: t.latency_ms or 0.0).candidate


def try_engines(
    path: Path,
    tried: Sequence[Candidate],
    golden: Golden,
    variant: str | None = None,
    *,
    threads: int = 1,
    allow_bf16: bool = False,
    runs: int = 40,
    clock: Callable[[], float] = time.perf_counter,
) -> list[EngineTrial]:
    """Open, check and time each candidate; one that fails is reported, not raised. Runs stop early after 0.2 s a candidate.

    An exact one is left out after its engine's fast one has agreed: it would only be slower.
    """
    trials: list[EngineTrial] = []
    for one in tried:
        if one.mode == "exact" and any(t.usable and t.engine == one.engine for t in trials):
            continue
        try:
            session = open_session(path, engine=one.engine, mode=one.mode, threads=threads, allow_bf16=allow_bf16)
            result = check_golden(session, golden, variant)
            # Timed only if right: how fast a wrong answer comes does not matter.
            trials.append(EngineTrial(one, result, _median_ms(session, golden, runs, clock) if result.ok else None))
        except SpokeshaveError as e:
            trials.append(EngineTrial(one, None, None, e.message))
    return trials


def _median_ms(session: Session, golden: Golden, runs: int, clock: Callable[[], float]) -> float:
    # One row, since most requests at a site are single rows.
    row = {name: array[:1] for name, array in golden.inputs.items()}
    times: list[float] = []
    began = clock()
    # Three runs at least, so that the first, which allocates, is not the median.
    while len(times) < runs and (len(times) < 3 or clock() - began < 0.2):
        start = clock()
        session.run(row)
        times.append(clock() - start)
    return median(times) * 1e3

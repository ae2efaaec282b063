"""`python -m ...engine_trial QUESTION`: run one model file in every way that is asked for, in a process that may grow or
fall, and then ends.

The server asks (`apart`) and never runs what it has not seen to end well. A child that crashes on an instruction, or hangs, costs
its time: every way is then tried in a child of its own, and the one that falls is known.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import Signals

from msgspec import Struct, json
from msgspec.structs import replace

from model_formats.core.logging import log_to_stderr
from model_formats.core.runtime import Candidate
from model_formats.package.golden import read_golden
from model_formats.runtimes.select import EngineTrial, try_engines

__all__ = ["EngineQuestion", "EngineResult", "apart", "main"]


class EngineQuestion(Struct, frozen=True):
    """What is to be tried."""

    path: str
    golden: str
    variant: str
    candidates: tuple[Candidate, ...]
    threads: int
    allow_bf16: bool


class EngineResult(Struct, frozen=True):
    """How one way did."""

    candidate: Candidate
    right: bool
    detail: str
    latency_ms: float | None = None
    ran: bool = True
    """False where it gave no outputs at all: it cannot open the file, crashed or hung."""

    def __str__(self) -> str:
        """For people: `onnxruntime (exact): all outputs agree`."""
        return f"{self.candidate.engine}{' (exact)' if self.candidate.mode == 'exact' else ''}: {self.detail}"


class _Fell(Exception):
    """The child did not end well."""


def main(question: str) -> bytes:
    """Answer a `EngineQuestion` in JSON with the `EngineResult` of each way, in JSON."""
    asked = json.decode(question, type=EngineQuestion)
    golden = read_golden(Path(asked.golden))
    trials = try_engines(
        Path(asked.path), asked.candidates, golden, asked.variant, threads=asked.threads, allow_bf16=asked.allow_bf16
    )
    return json.encode([_told(trial) for trial in trials])


def apart(question: EngineQuestion, *, limit_s: float, tell: Callable[[EngineResult], None]) -> list[EngineResult]:
    """Try in a child process; in one for each way when that one falls. `tell` hears of every way that fell alone.

    Raises OSError where no child can be started.
    """
    try:
        return _child(question, limit_s)
    except _Fell as e:
        if len(question.candidates) == 1:
            return [_fallen(question.candidates[0], e, tell)]
    tried: list[EngineResult] = []
    for candidate in question.candidates:
        if any(t.right and t.candidate.engine == candidate.engine for t in tried):
            continue  # the exact way after the fast one, as in one child
        try:
            tried += _child(replace(question, candidates=(candidate,)), limit_s / 2)
        except _Fell as e:
            tried.append(_fallen(candidate, e, tell))
    return tried


def _fallen(candidate: Candidate, error: _Fell, tell: Callable[[EngineResult], None]) -> EngineResult:
    found = EngineResult(candidate, right=False, detail=str(error), ran=False)
    tell(found)
    return found


def _child(question: EngineQuestion, limit_s: float) -> list[EngineResult]:
    command = [sys.executable, "-m", "spoke_agent.server.models.engine_trial", json.encode(question).decode()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit_s, check=False, env=environment)
    except subprocess.TimeoutExpired as e:
        raise _Fell(f"did not end within {limit_s:g} s") from e
    if done.returncode:
        raise _Fell(_end(done.returncode, done.stderr))
    try:
        return json.decode(done.stdout.splitlines()[-1], type=list[EngineResult])
    except (ValueError, IndexError) as e:
        raise _Fell("gave no readable answer") from e


def _end(status: int, stderr: bytes) -> str:
    if status < 0:
        return f"crashed ({_signal(-status)})"
    lines: Sequence[str] = stderr.decode("utf-8", "replace").split("\n")
    return f"ended with status {status}: {next((line for line in reversed(lines) if line.strip()), '')[:300]}"


def _signal(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _told(trial: EngineTrial) -> EngineResult:
    detail = trial.error or (trial.golden.detail if trial.golden else "not tried")
    return EngineResult(trial.candidate, trial.usable, detail, trial.latency_ms, ran=trial.golden is not None)


if __name__ == "__main__":
    log_to_stderr()  # so that an exception that ends it leaves its kind there, which the server repeats, and not its text
    sys.stdout.buffer.write(main(sys.argv[1]))

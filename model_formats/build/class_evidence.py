"""Runs a variant in every way this CPU allows and records golden outputs and score. `emulated.py` does it for other CPU classes.

`python -m model_formats.build.class_evidence` reads a question as JSON and writes a line before and after each trial: when the
operating system kills such a child process, its last line names the trial that it died of.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from model_formats.build.dataset import Rows, read_rows
from model_formats.build.scoring import Task, score
from model_formats.core.cpu_class import CpuClass, emulated, this_class
from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Array, Candidate, Session, candidates
from model_formats.documents.evidence import ClassEvidence
from model_formats.package.golden import Golden, GoldenResult, check_golden, read_golden
from model_formats.runtimes.benchmark import measure_speed
from model_formats.runtimes.select import open_session

__all__ = ["TrialData", "TrialQuestion", "Trial", "TrialResult", "lost", "needless", "try_here", "trials_of"]

_BATCH = 32


class Trial(msgspec.Struct, frozen=True):
    """One variant's file, run one way."""

    variant: str
    path: str
    candidate: Candidate


class TrialData(msgspec.Struct, frozen=True):
    """What trials are compared with and scored on. `output`: name of the scored output."""

    golden: Golden
    rows: Rows
    task: Task
    output: str


class TrialResult(msgspec.Struct, frozen=True):
    """A trial and its outcome, with the reason in words."""

    trial: Trial
    evidence: ClassEvidence
    detail: str


class TrialQuestion(msgspec.Struct, frozen=True):
    """The input of a child process: trials and the files they run."""

    trials: tuple[Trial, ...]
    golden: str
    rows: str
    task: Task
    output: str
    budget_s: float
    """Scoring a trial ends after so long, with the rows done by then."""


def trials_of(files: dict[str, Path]) -> tuple[Trial, ...]:
    """Every way to run each variant; what is slow under an emulator comes last: OpenVINO, and fp32 before the others."""
    ways = [
        Trial(variant, str(path), one)
        for variant, path in reversed(files.items())
        for one in candidates(["openvino"] if path.suffix == ".xml" else ["onnxruntime", "openvino"])
    ]
    return tuple(sorted(ways, key=lambda t: t.candidate.engine == "openvino"))


def needless(trial: Trial, done: Iterable[TrialResult]) -> bool:
    """True for an exact way where the same engine's fast one was right."""
    same = [t for t in done if (t.trial.variant, t.trial.candidate.engine) == (trial.variant, trial.candidate.engine)]
    return trial.candidate.mode == "exact" and any(t.evidence.right for t in same)


def try_here(trial: Trial, data: TrialData, *, budget_s: float = np.inf, timed: bool = False) -> TrialResult:
    """Open, compare and score on this CPU; a failure is evidence as well. `timed`: latency too, where the CPU is real."""
    one, here, real = trial.candidate, this_class(), not emulated()
    try:
        session = open_session(Path(trial.path), engine=one.engine, mode=one.mode)
        result = check_golden(session, data.golden, trial.variant)
        found, count = _score(session, data, budget_s)
        inputs = data.rows.inputs
        speed = measure_speed(session, inputs, budget_s=0.1).latency_ms_batch32 if timed and real and result.ok else None
    except SpokeshaveError as e:
        return lost(trial, here, e.message, emulated=not real)
    evidence = ClassEvidence(
        cpu_class=here,
        engine=one.engine,
        mode=one.mode,
        score=found if np.isfinite(found) else None,
        worst=_worst(result),
        rows=count,
        emulated=not real,
        latency_ms_batch32=speed,
    )
    return TrialResult(trial, evidence, result.detail)


def lost(trial: Trial, cpu_class: CpuClass, why: str, *, emulated: bool) -> TrialResult:
    """A trial that came to nothing."""
    one = trial.candidate
    evidence = ClassEvidence(cpu_class=cpu_class, engine=one.engine, mode=one.mode, score=None, worst=None, emulated=emulated)
    return TrialResult(trial, evidence, why)


def _worst(result: GoldenResult) -> float | None:
    return round(float(result.worst), 4) if np.isfinite(result.worst) else None


def _score(session: Session, data: TrialData, budget_s: float) -> tuple[float, int]:
    """The score, and of how many rows."""
    parts: list[Array] = []
    began = time.monotonic()
    for start in range(0, len(data.rows), _BATCH):
        parts += session.run({n: a[start : start + _BATCH] for n, a in data.rows.inputs.items()}, [data.output])
        if time.monotonic() - began > budget_s:
            break
    outputs = np.concatenate(parts)
    return score(data.task, outputs, data.rows.labels[: len(outputs)]), len(outputs)


def _answer(question: TrialQuestion, say: Callable[[Any], None]) -> None:
    data = TrialData(read_golden(Path(question.golden)), read_rows(question.rows), question.task, question.output)
    done: list[TrialResult] = []
    for place, trial in enumerate(question.trials):
        if needless(trial, done):
            continue
        say(place)
        done.append(try_here(trial, data, budget_s=question.budget_s))
        say(done[-1])


def answers(lines: Iterable[bytes]) -> Iterator[int | TrialResult]:
    """What a child wrote, whole lines only: the place of a trial that begins, or one that is done."""
    for line in lines:
        if line.endswith(b"\n"):
            yield msgspec.json.decode(line, type=int | TrialResult)


def _main() -> None:
    def say(what: object) -> None:
        sys.stdout.write(msgspec.json.encode(what).decode() + "\n")
        sys.stdout.flush()

    _answer(msgspec.json.decode(sys.stdin.read(), type=TrialQuestion), say)


if __name__ == "__main__":
    _main()

"""Runs trials for other CPU classes under qemu's user mode. The answers are those of such a CPU; the times are not."""

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from model_formats.build.class_evidence import Trial, TrialQuestion, TrialResult, answers, lost, needless
from model_formats.core.cpu_class import CpuClass, this_class

__all__ = ["EMULATOR", "emulated_classes", "try_emulated"]

EMULATOR = "qemu-x86_64-static"
_MODELS: dict[CpuClass, str] = {"sse42": "Nehalem", "avx2": "Haswell"}
"""CPU models of qemu 7.2; it has none with VNNI."""
Ended = Literal["done", "died", "late"]


def emulated_classes() -> tuple[CpuClass, ...]:
    """Classes that can be emulated here, but for this machine's own; none without qemu (Debian's `qemu-user-static`)."""
    if platform.machine() != "x86_64" or shutil.which(EMULATOR) is None:
        return ()
    return tuple(c for c in _MODELS if c != this_class())


def try_emulated(
    question: TrialQuestion, cpu_class: CpuClass, *, limit_s: float = 40.0, clock: Callable[[], float] = time.monotonic
) -> tuple[list[TrialResult], bool]:
    """All trials on one emulated class, and whether all were got through before the limit.

    A trial that kills its process is lost, and the others go on in another.
    """
    done: list[TrialResult] = []
    left, until = list(question.trials), clock() + limit_s
    while left and clock() < until:
        ended, trial = _one_process(msgspec.structs.replace(question, trials=tuple(left)), cpu_class, done, until - clock())
        if ended != "died" or trial is None:
            return done, ended == "done"
        done.append(lost(trial, cpu_class, "the process died", emulated=True))
        left = [t for t in left[left.index(trial) + 1 :] if not needless(t, done)]
    return done, not left


def _one_process(
    question: TrialQuestion, cpu_class: CpuClass, done: list[TrialResult], limit_s: float
) -> tuple[Ended, Trial | None]:
    """Run trials until the process ends or time is up; `done` grows. Gives the trial that it died of."""
    command = [EMULATOR, "-cpu", _MODELS[cpu_class], sys.executable, "-m", "model_formats.build.class_evidence"]
    began: int | None = None
    timely, out = _run(command, msgspec.json.encode(question), limit_s)
    for one in answers(out.splitlines(keepends=True)):
        if isinstance(one, int):
            began = one
            continue
        began = None
        done.append(_as_class(one, cpu_class))
    if timely == "late":
        return "late", None
    return (timely, None) if began is None else ("died", question.trials[began])


def _run(command: list[str], question: bytes, limit_s: float) -> tuple[Ended, bytes]:
    try:
        ended = subprocess.run(command, input=question, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as e:
        return "late", e.stdout or b""
    except OSError:  # some machines forbid child processes: then nothing is known of other classes
        return "died", b""
    return ("done" if ended.returncode == 0 else "died"), ended.stdout


def _as_class(one: TrialResult, cpu_class: CpuClass) -> TrialResult:
    """Under the class that was asked for: whatever the emulator's CPU says of itself, it has this class's instructions."""
    evidence = one.evidence.replace(cpu_class=cpu_class, emulated=True, latency_ms_batch32=None)
    return msgspec.structs.replace(one, evidence=evidence)

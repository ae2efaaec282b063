"""The ground that benches stand on: our libraries as a machine has them after a boot, peers in environments of their own, and how
fast the machine is at the moment.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["WORK_US", "Pace", "as_after_a_boot", "at_pace", "environment"]

HOUSE = Path("build/peers")
WORK_US: Final = "work_us"
_TRIES: Final = 4
_ALIKE: Final = 0.08
_WORK: Final = """
import sys, time
for _ in sys.stdin:
    took = []
    for _ in range(3):
        start = time.perf_counter()
        for i in range(60000):
            i & 7
        took.append(time.perf_counter() - start)
    print(min(took) * 1e6, flush=True)
"""


def as_after_a_boot() -> None:
    """Put our libraries out of the kernel's cache, so that they are read again. Call it before they are imported.

    What an installation has just written lies in the cache in large pieces, and Linux from 6.18 on maps a whole piece where a
    process touches one page of it: a server's resident memory reads 15 to 20 MB more than after the next boot.
    """
    os.sync()  # what is not on disk yet stays
    for library in Path(sys.prefix).rglob("*.so*"):
        with library.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def environment(name: str, requirements: Sequence[str]) -> tuple[str | None, str]:
    """The Python of a peer's environment under build/peers/, made at first use; or None, and why it could not be."""
    folder = HOUSE / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=600)
        except (subprocess.SubprocessError, OSError) as e:
            return None, (str(getattr(e, "stderr", "") or e).strip().splitlines() or ["?"])[-1][:200]
        ready.touch()
    return str(python.absolute()), ""


class Pace:
    """How fast a core is at the moment, by a fixed piece of work on it.

    Where others share the processor it changes by half within seconds. Of two things that are set beside each other, each is told
    with the pace it met (`WORK_US`: microseconds that the work took), and only what met one pace from beginning to end counts.
    """

    def __init__(self, core: str) -> None:
        command = ["taskset", "-c", core, sys.executable, "-c", _WORK]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()

    def work_us(self) -> float:
        """Do the work now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def told(self, measure: Callable[[], dict[str, float]], tries: int = _TRIES) -> dict[str, float]:
        """What `measure` gives, with the pace it met; measured again when that changed meanwhile, `tries` times at most."""
        for _ in range(tries):
            before, row, after = self.work_us(), measure(), self.work_us()
            if abs(after - before) < _ALIKE * before:
                break
        return {**row, WORK_US: (before + after) / 2}


def at_pace(row: Mapping[str, float], key: str) -> float:
    """A rate or a time in units of the work that the core's pace is known by."""
    return row[key] * row[WORK_US] if key.endswith("_s") else row[key] / row[WORK_US]

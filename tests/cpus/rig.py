"""The rig: run this project's Python on a class of CPU.

    rig = Rig()
    rig.run(machine, "-m", "spoke_agent", "--version")

x86 classes run this environment's own Python under qemu; arm64 classes run Debian's, with the wheels of `[spoke]` alone. A class
that cannot be had says why (`lacks`). What the class's programs start (`sys.executable`) runs under the emulator as well.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cpus.arm64 import Arm64Missing, prefix, prepare, python_of
from tests.cpus.machines import HOST, Machine

__all__ = ["ROOT", "Rig", "RunEnded"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "cpus"
INSIDE = Path(__file__).parent / "inside"


class RunEnded(Exception):
    """A program inside a class ended with another status than 0."""

    def __init__(self, machine: Machine, words: list[str], status: int, output: str) -> None:
        how = f"signal {-status if status < 0 else status - 128}" if status < 0 or status > 128 else f"status {status}"
        super().__init__(f"on {machine.name}, `{shlex.join(words)[:300]}` ended with {how}:\n{output[-3000:]}")
        self.status = status


class Rig:
    """Pythons of all classes, made when they are first asked for and kept under `folder`."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._found: dict[str, Path | str] = {}
        """By class: the Python to start, or why there is none."""

    def lacks(self, machine: Machine) -> str | None:
        """Why the class cannot run here; None when it can."""
        found = self._made(machine)
        return found if isinstance(found, str) else None

    def python(self, machine: Machine) -> Path:
        """The interpreter to start. Raises LookupError with the reason where there is none."""
        found = self._made(machine)
        if isinstance(found, str):
            raise LookupError(f"{machine.name}: {found}")
        return found

    def environment(self, machine: Machine, **more: str) -> dict[str, str]:
        """The environment of a program inside the class."""
        paths = [INSIDE, ROOT, *([self.folder / "arm64" / "wheels"] if machine.arm64 else [])]
        own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "SPOKESHAVE_CLASS_PYTHON": str(self.python(machine))}
        return {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **own, **more}

    def start(self, machine: Machine, *words: object, **options: Any) -> "subprocess.Popen[str]":
        """Start a Python inside the class and return at once."""
        line = [str(self.python(machine)), *map(str, words)]
        return subprocess.Popen(line, env=self.environment(machine), cwd=ROOT, text=True, stdin=subprocess.DEVNULL, **options)

    def run(self, machine: Machine, *words: object, timeout: float = 1800) -> str:
        """Run a Python inside the class and return what it printed. Raises RunEnded."""
        with self.start(machine, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise RunEnded(machine, list(map(str, words)), process.returncode, output + errors)
        return output

    def _made(self, machine: Machine) -> Path | str:
        if machine.name not in self._found:
            try:
                self._found[machine.name] = machine.lacks() or self._make(machine)
            except Arm64Missing as e:
                self._found[machine.name] = str(e)
        return self._found[machine.name]

    def _make(self, machine: Machine) -> Path:
        if machine == HOST:
            return Path(sys.executable)
        line = [machine.emulator, "-cpu", machine.cpu]
        if machine.arm64:
            folder = prepare(self.folder / "arm64")
            system = prefix(folder, machine)
            line += ["-L", str(system), str(system / "usr/bin" / python_of(folder))]
        else:
            line.append(sys.executable)
        script = self.folder / "bin" / f"python-{machine.name}"
        script.parent.mkdir(parents=True, exist_ok=True)
        beside = script.with_suffix(f".{os.getpid()}")
        beside.write_text(f'#!/bin/sh\nexec {shlex.join(line)} "$@"\n')
        beside.chmod(0o755)
        beside.replace(script)
        return script

"""The stage: folders, processes and commands. The story drives the same `hub` and `spoke` programs that a person would type."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


class CommandFailed(Exception):
    """A command ended with another exit status than the story expected."""

    def __init__(self, args: list[str], status: int, output: str, errors: str) -> None:
        super().__init__(f"`{' '.join(args)}` ended with {status}:\n{output[-2000:]}{errors[-4000:]}")
        self.status, self.output, self.errors = status, output, errors


class Stage:
    """Everything the demo starts and writes lives under one folder, and ends with it."""

    def __init__(self, folder: Path, hosts: Mapping[str, Sequence[str]] | None = None) -> None:
        """`hosts`: for each site the words before a command that run it on the site's own machine; default: all on this one."""
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self.hosts = hosts or {}
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def home(self, name: str) -> Path:
        """The home folder of the hub or of a spoke."""
        return self.folder / name

    def on_host(self, home: Path) -> list[str]:
        """The words that run a command on the machine of a home: `dubai-2` is a second spoke at dubai."""
        return list(self.hosts.get(home.name.partition("-")[0], ()))

    def hub(self, *args: str | int | Path, **kwargs: Any) -> Any:
        """Run `hub ... --json` and return what it printed."""
        return self.command(["hub", *map(str, args)], self.home("hub"), **kwargs)

    def spoke(self, site: str, *args: str | int | Path, **kwargs: Any) -> Any:
        """Run `spoke ... --json` for one site and return what it printed."""
        return self.command(["spoke", *map(str, args)], self.home(site), **kwargs)

    def command(
        self,
        args: list[str],
        home: Path,
        *,
        fails: bool = False,
        prefix: tuple[str, ...] = (),
        tell: Callable[[str], None] | None = None,
        timeout: float = 170,
    ) -> Any:
        """Run a command of ours and return its JSON; with `fails`, the error document on stderr.

        `tell` gets its talk, line by line.
        """
        line = [*self.on_host(home), *prefix, str(BIN / args[0]), "--json", "--home", str(home), *args[1:]]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment())
        guard = threading.Timer(timeout, process.kill)
        guard.start()
        talk = []
        with process, ThreadPoolExecutor(1) as reader:
            assert process.stdout
            assert process.stderr
            printed = reader.submit(process.stdout.read)
            for text in process.stderr:
                talk.append(text)
                if tell and not fails:
                    tell(text.rstrip())
            output = printed.result()
        guard.cancel()
        if (process.returncode != 0) != fails:
            raise CommandFailed(args, process.returncode, output, "".join(talk))
        text = talk[-1] if fails else output
        return json.loads(text) if text.strip() else None

    def start(self, name: str, args: list[str], home: Path, **extra: str) -> subprocess.Popen[bytes]:
        """Start a long-running program of ours; its talk goes to logs/<name>.log."""
        log = (self.logs / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [*self.on_host(home), str(BIN / args[0]), "--home", str(home), *args[1:]],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**self.environment(), **extra},
            start_new_session=True,
        )
        self.processes[name] = process
        return process

    def stop(self, name: str, *, kill: bool = False) -> None:
        """Stop a program, politely (SIGTERM) or not (SIGKILL to its whole group)."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if kill:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """Stop all, the last started first."""
        for name in reversed(list(self.processes)):
            self.stop(name)

    def wait(self, what: str, check: Callable[[], Any], timeout: float = 60, every: float = 0.1) -> Any:
        """Wait until `check` gives something true, and return it. A program of ours that died meanwhile ends the wait."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if found := check():
                return found
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise CommandFailed([name], process.returncode, "", self.tail(name))
            time.sleep(every)
        logs = "\n".join(f"--- {name}\n{self.tail(name)}" for name in self.processes)
        raise TimeoutError(f"waited {timeout:.0f} s in vain for {what}\n{logs}")

    def tail(self, name: str, size: int = 2500) -> str:
        """The end of a program's log."""
        log = self.logs / f"{name}.log"
        return log.read_text(errors="replace")[-size:] if log.exists() else ""

    @staticmethod
    def environment() -> dict[str, str]:
        """The environment that programs of ours run in."""
        return {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}

"""One whole spoke on a class of CPU: it enrols by file, takes a bundle, verifies it, serves, fits a head and reports.

The hub runs on the host, as it would; all that the spoke runs, its children too, runs inside the class.
"""

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from msgspec import Struct

from examples.demo.callers import Caller
from examples.demo.stage import Stage
from hub.train.corruptions import turn
from hub.train.datasets import digits
from tests.cpus.machines import Machine
from tests.cpus.rig import Rig, RunEnded

__all__ = ["WholeSpoke", "hub_with", "run_spoke"]

PATIENCE_S = 600
OWN = 200
"""Rows that the site fits to; the others test."""
TURN = 35


class WholeSpoke(Struct, frozen=True):
    """What one spoke did."""

    machine: str
    built_on: str
    variant: str
    engine: str
    mode: str
    chain: tuple[str, ...]
    accuracy: float
    before: float
    """On turned digits, with the hub's head."""
    after: float
    accepted: bool
    reported: int | None
    """The version that the hub knows it serves, by its signed receipts."""


@contextlib.contextmanager
def hub_with(folder: Path, packages: dict[int, Path]) -> Iterator[Stage]:
    """A running hub that has released these model folders of digits, by version."""
    stage = Stage(folder)
    stage.hub("init", "--zone", "eu")
    stage.start("hub", ["hub", "up"], stage.home("hub"))
    try:
        stage.wait("the hub", (stage.home("hub") / "run" / "hub.json").exists, 60)
        for _, package in sorted(packages.items()):
            stage.hub("model", "publish", package)
        yield stage
    finally:
        stage.close()


def run_spoke(rig: Rig, machine: Machine, stage: Stage, version: int, built_on: str) -> WholeSpoke:
    """The whole life of a spoke. Raises RunEnded, CommandFailed, AssertionError."""
    spoke = _Spoke(rig, machine, stage)
    spoke.enrol()
    applied = spoke.take(version)
    with spoke.serving() as caller:
        shares = digits().sites["frankfurt"]
        images, labels = shares.inputs["image"], shares.labels
        accuracy = caller.accuracy(images, labels)
        turned = turn(images, TURN).astype(np.float32)
        before = caller.accuracy(turned[OWN:], labels[OWN:])
        tuned = spoke.tune(turned[:OWN], labels[:OWN])
        after = caller.accuracy(turned[OWN:], labels[OWN:])
        told = spoke.describe(caller)
        reported = spoke.report()
    return WholeSpoke(
        machine=machine.name,
        built_on=built_on,
        variant=told.get("variant", ""),
        engine=told.get("engine", ""),
        mode=told.get("mode", ""),
        chain=tuple(applied["chain"]),
        accuracy=accuracy,
        before=before,
        after=after,
        accepted=tuned["accepted"],
        reported=reported,
    )


class _Spoke:
    """The commands that a person at the site would type."""

    def __init__(self, rig: Rig, machine: Machine, stage: Stage) -> None:
        self.rig, self.machine, self.stage = rig, machine, stage
        self.site = machine.name.replace("_", "-")
        self.home = stage.home(self.site)
        self.home.mkdir()

    def enrol(self) -> None:
        request, grant = self._file("request.json"), self._file("grant.json")
        code = self.stage.hub("spoke", "invite", self.site, "--zone", "eu", "--regime", "gdpr")["code"]
        self("enrol", "--code", code, "--request-out", request)
        self.stage.hub("spoke", "admit", request, grant)
        self("enrol", "--grant", grant)

    def take(self, version: int) -> Any:
        bundle = self._file("bundle")
        self.stage.hub("bundle", "export", "--site", self.site, "--model", f"digits@{version}", "--out", bundle, "--soak", 1)
        return self("sideload", "apply", bundle)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Caller]:
        with (self.stage.logs / f"{self.site}.log").open("ab") as log:
            words = ("-m", "spoke_agent", "--home", self.home, "run", "--offline")
            process = self.rig.start(self.machine, *words, stdout=log, stderr=subprocess.STDOUT)
        caller = Caller(self.home, timeout_s=PATIENCE_S)
        try:
            self._wait("its server", process, lambda: _ready(self.home))
            yield caller
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()

    def tune(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Any:
        rows = self._file("rows.npz")
        np.savez(rows, image=images, label=labels)
        self("data", "import", rows, "--model", "digits")
        return self("tune", "--model", "digits")

    def describe(self, caller: Caller) -> dict[str, Any]:
        metadata: dict[str, Any] = httpx.get(f"{caller.url}/models/digits", timeout=PATIENCE_S).raise_for_status().json()
        return dict(metadata["parameters"])

    def report(self) -> int | None:
        receipts = self._file("receipts")
        self("sideload", "receipts", receipts)
        self.stage.hub("receipts", "import", receipts)
        shown = self.stage.hub("spoke", "show", self.site)
        return next((s["version"] for s in shown["serving"] if s["model"] == "digits"), None)

    def __call__(self, *words: object) -> Any:
        printed = self.rig.run(self.machine, "-m", "spoke_agent", "--json", "--home", self.home, *words, timeout=PATIENCE_S)
        return json.loads(printed) if printed.strip() else None

    def _file(self, name: str) -> Path:
        return self.stage.folder / f"{self.site}.{name}"

    def _wait(self, what: str, process: "subprocess.Popen[str]", check: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not check():
            if process.poll() is not None or time.monotonic() > end:
                raise RunEnded(
                    self.machine, ["spoke", "run"], process.returncode or 0, f"no {what}\n{self.stage.tail(self.site)}"
                )
            time.sleep(0.2)


def _ready(home: Path) -> bool:
    port = home / "run" / "server.port"
    with contextlib.suppress(httpx.HTTPError, OSError):
        return port.exists() and httpx.get(f"http://127.0.0.1:{port.read_text().strip()}/v2/health/ready").status_code == 200
    return False

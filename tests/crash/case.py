"""One update of a spoke, with one thing that goes wrong in it; then the start after it, which has to make all well."""

import contextlib
import gc
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_formats.core.types import digest_of
from model_formats.package import open_package
from spoke_agent.daemon.wiring import AgentComponents
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.slots import ModelSlots, read_slots
from spoke_agent.update.update import Update
from sync.core.types import Reason, State
from sync.store import BlobStore
from tests.crash.points import Points
from tests.crash.sweep_run import HEAD, ME, DoesNotEnd, SweepRun, another_boot

Flow = Literal["blocks", "delta", "sideload", "variant"]
FLOWS: tuple[Flow, ...] = ("blocks", "delta", "sideload", "variant")
"""How version 2 comes: as blocks over the bus, one of its files as a delta, or on a stick; or as blocks of two variants, of which
the first is off on this machine.
"""

WENT_ON, FELL, HUNG, KILLED = 0, 3, 4, -signal.SIGKILL
LONGEST_S = 120
"""Seconds after which a process is taken to hang, and is ended."""
ENDS = {WENT_ON: "went on", FELL: "fell", KILLED: "killed", HUNG: "hung", -signal.SIGALRM: "hung"}
"""What became of a process: a fault did not stop it, an error ended it (its supervisor starts it again), or it was killed."""
DONE = (2, State.COMMITTED, Reason.NONE)
FULL = (1, State.FAILED, Reason.DISK_FULL)
BACK = (1, State.ROLLED_BACK, Reason.CRASHED_IN_PROBATION)
"""What a second crash in one probation must come to."""
OFF = {"onnx-int8": Reason.GOLDEN_MISMATCH}
_RUNNING = ("-wal", "-shm", ".lock", ".sock")


@dataclass(frozen=True, slots=True)
class Case:
    """`again`: a point of the start after it, at which the process is killed too."""

    flow: Flow
    at: int
    fault: str
    again: int | None = None


class Cases:
    """The cases of one flow, over a ground that was prepared once."""

    def __init__(self, folder: Path, flow: Flow) -> None:
        folder.mkdir()
        self.folder, self.flow, self.sweep_run = folder, flow, SweepRun(folder)
        self.sweep_run.settle()
        gc.freeze()
        self._before = _names(self.sweep_run.home)
        self._say()
        self._after: set[str] = set()

    def count(self) -> list[str]:
        """All points of an undisturbed update, as `state operation file`. To be called before `run`."""
        home, out = self._home("count"), self.folder / "points.txt"

        def act(points: Points) -> None:
            before = _writes_of_this_process()
            self._update(home, points)
            out.write_text("\n".join([str(_writes_of_this_process() - before), *points.seen]))

        self._must("count", lambda: _with_points(Points(home.root), act))
        self.written, *points = out.read_text().splitlines()
        self._after = _names(home)
        shutil.rmtree(home.root)
        return points

    def run(self, case: Case) -> str:
        """Let it happen, start again, check. Returns how the first process ended; raises AssertionError with what is wrong."""
        home = self._home(f"{case.at}-{case.fault}-{case.again}")
        try:
            first, second = Points(home.root, case.at, case.fault), Points(home.root, case.again)
            ended = ENDS[_process(lambda: _with_points(first, lambda p: self._update(home, p)))]
            assert ended != "hung", "the first process hangs"
            power = case.fault in ("lost", "mixed")
            twice = (
                case.again is not None and _process(lambda: _with_points(second, lambda p: self._start(home, power))) == KILLED
            )
            self._must("check", lambda: self._check(home, power=power, twice=twice))
        finally:
            shutil.rmtree(home.root)
            shutil.rmtree(f"{home.root}.attic", ignore_errors=True)
        return ended

    # ---- what the processes do

    def _update(self, home: SpokeHome, points: Points) -> None:
        """The first one: version 2 comes."""

        def watch(components: AgentComponents) -> None:
            points.state = _state_of(components)

        if self.flow == "sideload":
            self.sweep_run.sideload(home, watch)
            return
        with self.sweep_run.online(home, off=OFF if self.flow == "variant" else {}) as components:
            watch(components)
            self.sweep_run.hub.send(ME, self.directive)
            self.sweep_run.follow(components)

    def _start(self, home: SpokeHome, power: bool) -> None:
        """Each one after it: the hub says the same, or somebody applies the stick once more."""
        if power:
            another_boot()
        self._update(home, Points(home.root))

    def _check(self, home: SpokeHome, *, power: bool, twice: bool) -> None:
        _assert_served(home)
        self._start(home, power)
        found = self._found(home)
        if found == FULL:
            self._say(again=True)
            self._start(home, power)
            found = self._found(home)
        assert found == DONE or (twice and found == BACK), found
        if self.flow == "variant" and found == DONE:
            champion = _places(home).champion
            assert champion is not None
            assert champion.variant == "onnx-fp32"
        _assert_served(home)
        if self.flow != "variant":  # there the head was fitted on another file than the one that serves now
            _assert_adapter(home)
        left = _names(home) ^ (self._after if found == DONE else self._before)
        assert not left, f"files that are too much or missing: {sorted(left)[:4]}"

    def _found(self, home: SpokeHome) -> tuple[int | None, State, Reason]:
        """What is served, and how the update ended: by the signed report that the hub verified, or on the spoke's own disk."""
        from spoke_agent.update.journal import Journal

        journal = Journal(home.journal)
        update = journal.update("digits")
        journal.close()
        assert isinstance(update, Update)
        assert update.saves <= 28
        champion = _places(home).champion
        reported = self.sweep_run.hub.reports[ME][-1:]
        assert self.flow == "sideload" or (reported[0].state, reported[0].reason) == (update.state, update.reason)
        return champion.version if champion else None, update.state, update.reason

    def _say(self, *, again: bool = False) -> None:
        desired = self.sweep_run.desired(2, delta=self.flow == "delta", again=again)
        if self.flow == "sideload":
            self.sweep_run.write_stick(desired)
        else:
            self.directive = self.sweep_run.hub.directive(ME, desired)

    # ---- processes and folders

    def _home(self, name: str) -> SpokeHome:
        shutil.copytree(self.sweep_run.template, self.folder / name)
        return SpokeHome(self.folder / name)

    def _must(self, what: str, act: Callable[[], None]) -> None:
        said = self.folder / f"{os.getpid()}.error"
        said.unlink(missing_ok=True)
        if _process(act, said) != WENT_ON:
            raise AssertionError(f"{what}: {said.read_text().strip() if said.exists() else 'killed'}")


def _process(act: Callable[[], None], said: Path | None = None) -> int:
    """Run something in a process of its own. `said`: where it writes what it fell over."""
    pid = os.fork()
    if pid == 0:
        status = FELL
        signal.alarm(LONGEST_S)
        logging.disable()
        try:
            act()
            status = WENT_ON
        except BaseException as e:
            status = HUNG if isinstance(e, DoesNotEnd) else FELL
            if os.environ.get("SWEEP_VERBOSE"):
                traceback.print_exc(file=sys.stderr)
            if said is not None:
                said.write_text(f"{type(e).__name__}: {e}")
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _with_points(points: Points, act: Callable[[Points], None]) -> None:
    points.install()
    act(points)


def _state_of(components: AgentComponents) -> Callable[[], str]:
    at = ["idle"]

    def noting(real: Callable[..., object]) -> Callable[..., object]:
        def call(update: Update, *args: object) -> object:
            at[0] = str(update.state)
            return real(update, *args)

        return call

    components.runner.enter = noting(components.runner.enter)  # type: ignore[assignment]
    components.runner.work = noting(components.runner.work)  # type: ignore[assignment]
    return lambda: at[0]


def _assert_served(home: SpokeHome) -> None:
    """Something is served, and every byte of it is what was signed. (`open_package` goes by digests from the index on.)"""
    champion = _places(home).champion
    assert champion is not None, "nothing is served"
    open_package(BlobStore(home.store), champion.index).check(champion.variant)


def _assert_adapter(home: SpokeHome) -> None:
    adapter = _places(home).adapter
    assert adapter is not None, "the adapter is not used any more"
    assert adapter.file == digest_of((home.adapters / "mine" / "head").read_bytes()) == digest_of(HEAD)


def _places(home: SpokeHome) -> ModelSlots:
    return read_slots(home.slots).models.get("digits", ModelSlots())


def _names(home: SpokeHome) -> set[str]:
    """All files, but for those that come and go with a running process."""
    files = (p for p in home.root.rglob("*") if p.is_file() and not p.name.endswith(_RUNNING))
    return {str(p.relative_to(home.root)) for p in files}


def _writes_of_this_process() -> int:
    """Calls of `write` and its kin, as the kernel counts them; 0 where it does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/io").read_text().split("syscw:")[1].split()[0])
    return 0

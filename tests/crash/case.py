"""One whole update of a spoke that serves version 1 with an adapter of its own, cut at one point; then the start after it."""

import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

from model_formats.errors import DeviceError
from model_formats.package import closure, open_package
from spoke_agent.slots import AdapterSlot, ModelSlots, edit_slots, read_slots
from spoke_agent.update import Update
from sync.messages import DesiredModel, Directive, ProbationTerms
from sync.types import Reason, State
from tests.crash.points import Points
from tests.spoke_agent.twins import Rig

ADAPTER = AdapterSlot(name="mine", file="sha256:" + "a" * 64, base="sha256:" + "b" * 64)
CRASHED = 3
ENDS = {0: "went on", CRASHED: "fell", -signal.SIGKILL: "killed"}
DONE = (2, State.COMMITTED, Reason.NONE)
FULL = (1, State.FAILED, Reason.DISK_FULL)
BACK = (1, State.ROLLED_BACK, Reason.CRASHED_IN_PROBATION)
"""What a second crash in one probation must come to."""
"""Exit status of a child that an error brought down: the supervisor would start it again."""


class Cases:
    """Prepared once: a home on version 1, and a hub that has version 2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rig = Rig(folder / "template")
        rig.install(1)
        edit_slots(rig.slots, "digits", lambda m: m.model_copy(update={"adapter": ADAPTER}))
        rig.hub.publish(2)
        rig.journal.close()
        self.verified = {v: {d.digest for d in closure(rig.hub.layout(i), i)} for v, i in rig.hub.versions.items()}

    def count(self) -> list[str]:
        """All points of an undisturbed update, as `state operation`."""
        out = self.folder / "points.txt"
        home = self._home("count")
        assert self._child(home, Points(), out) == 0
        shutil.rmtree(home)
        return out.read_text().splitlines()

    def run(self, at: int, mode: str, again: int | None = None) -> str:
        """Cut at a point (and once more in the start after it), start again, check.

        Returns how the first process ended; raises AssertionError with what is wrong.
        """
        home = self._home(f"{at}-{mode}-{again}")
        try:
            ended = ENDS[self._child(home, Points(at, mode), None)]
            twice = again is not None and ENDS[self._child(home, Points(again), None, clean=False)] == "killed"
            self._check(home, twice=twice)
        finally:
            shutil.rmtree(home)
        return ended

    # ---- the first process

    def _child(self, home: Path, points: Points, out: Path | None, *, clean: bool = True) -> int:
        pid = os.fork()
        if pid == 0:
            status = CRASHED
            try:
                status = _process(home, points, out, clean=clean)
            except BaseException:
                if os.environ.get("SWEEP_VERBOSE"):
                    traceback.print_exc(file=sys.stderr)
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _home(self, name: str) -> Path:
        home = self.folder / name
        shutil.copytree(self.folder / "template", home)
        return home

    # ---- the start after it

    def _check(self, home: Path, *, twice: bool) -> None:
        served = read_slots(home / "spoke" / "slots.json").models.get("digits", ModelSlots()).champion
        assert served is not None, "nothing is served"
        rig = _rig(home, clean=False)
        open_package(rig.store, served.index).check(served.variant)
        _drive(rig)
        update = rig.journal.update("digits")
        assert isinstance(update, Update)
        found = (rig.champion(), update.state, update.reason)
        if found == FULL:
            found = _asked_again(rig)
        assert found == DONE or (twice and found == BACK), found
        assert rig.places().adapter == ADAPTER, "the adapter is gone"
        assert update.saves <= 28
        rig.journal.close()
        self._check_disk(home)

    def _check_disk(self, home: Path) -> None:
        names = {p.name for p in (home / "spoke" / "blobs" / "sha256").iterdir()}
        allowed = {d.removeprefix("sha256:") for version in (1, 2) for d in self.verified[version]}
        assert names <= allowed, f"leaked {sorted(names - allowed)[:3]}"
        assert not list((home / "spoke" / "partial").iterdir()), "partial files are left"
        assert not list(home.rglob("*.tmp")), "temporary files are left"


def _process(home: Path, points: Points, out: Path | None, *, clean: bool) -> int:
    if not clean:
        points.install()
    rig = _rig(home, clean=clean)
    points.state = lambda: rig.at
    if clean:
        points.install()
        rig.updater.follow(_directive(rig))
    _drive(rig)
    if out is not None:
        out.write_text("\n".join(points.seen))
    return 0


def _rig(home: Path, *, clean: bool) -> Rig:
    rig = Rig(home, clean=clean)
    for version in (1, 2):
        rig.hub.publish(version)
    rig.server.reconcile()
    if rig.updater.directive is not None and rig.updater.directive.generation < 2 and not clean:
        rig.generation = rig.updater.directive.generation
        rig.updater.follow(_directive(rig))
    return rig


def _directive(rig: Rig, *, generation: int = 1, rollout: str | None = None) -> Directive:
    index, terms = rig.hub.versions[2], ProbationTerms(soak_s=2)
    rig.generation = generation
    return rig.directive(DesiredModel(model="digits", version=2, index=index, rollout=rollout, probation=terms))


def _asked_again(rig: Rig) -> tuple[int | None, State, Reason]:
    """A disk that was full ends an update; when there is room and the hub asks again, it succeeds."""
    rig.updater.follow(_directive(rig, generation=2, rollout="again"))
    _drive(rig)
    update = rig.journal.update("digits")
    assert isinstance(update, Update)
    return rig.champion(), update.state, update.reason


def _drive(rig: Rig) -> None:
    """As the agent's loop does: a device that refuses is tried again."""
    for _ in range(400):
        try:
            rig.updater.tick()
            if rig.updater.idle():
                return
        except DeviceError:
            pass
        rig.clock.advance(1)
    raise AssertionError("the update does not end")

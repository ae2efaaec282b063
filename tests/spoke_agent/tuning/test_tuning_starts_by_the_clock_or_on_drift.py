import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spoke_agent.tuning.process import main
from spoke_agent.tuning.schedule import LEAST_NEW, TuneSchedule, start_process
from tests.spoke_agent.cli.test_learning_commands import home, spoke, turned_csv  # noqa: F401

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Starter:
    """Starts a process that ends at once, and remembers why."""

    def __init__(self) -> None:
        self.began: list[tuple[str, str]] = []
        self.last: subprocess.Popen[bytes] | None = None

    def __call__(self, model: str, origin: str) -> "subprocess.Popen[bytes]":
        self.began.append((model, origin))
        self.last = subprocess.Popen([sys.executable, "-S", "-c", ""])
        return self.last

    def wait(self) -> None:
        if self.last:
            self.last.wait(30)


def test_by_the_clock_when_enough_labels_are_new_and_not_again_after_a_restart(tmp_path: Path):
    start = Starter()
    schedule = TuneSchedule(tmp_path / "tuning", start, every=DAY, on_drift=False)
    assert schedule.look({"digits": LEAST_NEW - 1}, ["digits"], NOW) == []
    assert schedule.look({"digits": LEAST_NEW}, [], NOW) == ["digits: tuning began (schedule)"]
    start.wait()
    assert schedule.look({"digits": 500}, [], NOW) == ["digits: a new adapter serves"]
    again = TuneSchedule(tmp_path / "tuning", start, every=DAY, on_drift=False)
    assert again.look({"digits": 500}, [], NOW + DAY / 2) == []
    assert again.look({"digits": LEAST_NEW + 1}, [], NOW + DAY) == []  # hardly anything new
    assert again.look({"digits": 500}, [], NOW + DAY) == ["digits: tuning began (schedule)"]
    start.wait()


def test_on_drift_at_once_but_not_twice_on_the_same_labels(tmp_path: Path):
    start = Starter()
    schedule = TuneSchedule(tmp_path / "tuning", start, every=None, on_drift=True)
    assert schedule.look({"digits": 100}, [], NOW) == []
    assert schedule.look({"digits": 100}, ["digits"], NOW) == ["digits: tuning began (drift)"]
    start.wait()
    schedule.look({"digits": 100}, ["digits"], NOW)
    schedule.look({"digits": 110}, ["digits"], NOW + DAY)
    assert start.began == [("digits", "drift")]


def test_a_damaged_memory_costs_one_fit_and_nothing_else(tmp_path: Path):
    (tmp_path / "tuning").write_bytes(b"{")
    start = Starter()
    assert TuneSchedule(tmp_path / "tuning", start, every=DAY, on_drift=False).look({"digits": 50}, [], NOW)
    start.wait()


def test_the_real_process_fits_with_low_priority_and_says_so_by_its_status(
    home: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    spoke(home, capsys, "data", "import", str(turned_csv(tmp_path / "rows.csv")), "--model", "digits")
    before = os.nice(0)
    process = start_process(home, 7)("digits", "schedule")
    assert process.wait(60) == 0
    (listed,) = spoke(home, capsys, "adapter", "list")
    assert listed["in_use"]
    assert main(home, "unknown", "drift", 0) != 0
    assert "nothing is served" in capsys.readouterr().err
    assert os.nice(0) == before

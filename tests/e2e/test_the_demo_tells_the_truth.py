"""The demo is the end-to-end test: real processes, a real broker, real data; each step checks its own claims."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
STEPS = [
    "hub_up",
    "train",
    "shave",
    "publish",
    "enrol",
    "rollout",
    "serve",
    "drift",
    "adapt",
    "bad_release",
    "transfer",
    "sideload",
]


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.timeout(420)
def test_every_step_of_the_story_holds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--folder", str(tmp_path / "demo")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["ok"] is True
    assert [step["name"] for step in report["steps"]] == STEPS
    assert all(step["ok"] and step["figures"] for step in report["steps"])

"""At least 200 of the cases of `make sweep`, spread over every state; the sweep runs in a process of its own, since it forks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SAMPLE = {"blocks": 104, "delta": 36, "sideload": 64, "variant": 48}
STATES = {"starting", "admitted", "staging", "verified", "shadow", "armed", "probation", "committed"}
INDEX_OF_A_WAL = 8
"""Writes of SQLite to lengthen the index of one WAL: shared memory, which holds no data and is built anew."""
DATABASES = 3


def swept(flow: str, out: Path) -> dict[str, Any]:
    line = [sys.executable, "-m", "tests.crash.sweep", "--flow", flow, "--sample", str(SAMPLE[flow]), "--workers", "1"]
    done = subprocess.run([*line, "--out", str(out)], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())[flow]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("flow", SAMPLE)
def test_whatever_goes_wrong_a_verified_version_serves_and_the_update_ends(flow: str, tmp_path: Path) -> None:
    found = swept(flow, tmp_path / "sweep.json")
    assert found["failures"] == []
    assert found["cases"] == SAMPLE[flow]
    assert set(found["by_fault"]) >= {"kill", "torn", "lost", "mixed", "eio", "enospc"}
    assert set(found["by_state"]) >= (STATES if flow != "delta" else {"staging", "verified"})
    assert {"killed", "went on"} <= set(found["ended"])
    assert found["kernel_writes"] in (0, *range(found["writes"], found["writes"] + DATABASES * INDEX_OF_A_WAL + 1)), (
        "writes that the kernel counted and the sweep did not see"
    )


def test_the_sample_is_large_enough() -> None:
    assert sum(SAMPLE.values()) >= 200

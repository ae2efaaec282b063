"""At least 200 of the cases of `make sweep`, spread over every state."""

import tempfile
from pathlib import Path

import pytest

from tests.crash.sweep import sweep

SAMPLE = 208


@pytest.mark.slow
def test_whatever_point_an_update_is_cut_at_a_verified_version_serves_and_the_update_ends():
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=memory if memory.is_dir() else None) as folder:
        found = sweep(Path(folder), sample=SAMPLE)
    assert found["failures"] == []
    assert found["cases"] >= 200
    assert {"admitted", "staging", "verified", "shadow", "armed", "probation", "committed"} <= set(found["by_state"])
    assert {"killed", "went on"} <= set(found["ended"])

"""A repository and a spoke's trust store, on one clock that the test turns by hand."""

from pathlib import Path

import pytest

from tests.samples.trust_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)

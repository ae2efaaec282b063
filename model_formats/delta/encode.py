"""Make a delta between two model files."""

from pathlib import Path
from typing import Literal

__all__ = ["Level", "encode"]

Level = Literal["fast", "strong"]


def encode(base: Path, target: Path, out: Path, *, level: Level = "strong") -> int:
    """Write a delta to `out`; returns its size in bytes. It may be as large as the target: the planner decides."""
    raise NotImplementedError

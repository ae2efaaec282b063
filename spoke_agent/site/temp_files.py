"""Removes temporary files that an interrupted `atomic_write` left behind. Called at the start."""

import re
from pathlib import Path

from model_formats.core.file_lock import FileLock
from spoke_agent.site.home import SpokeHome

__all__ = ["remove_temp_files"]

_LEFT = re.compile(r"^\..+\.[0-9a-f]{8}\.tmp$")


def remove_temp_files(home: SpokeHome) -> int:
    """Remove them where only the agent writes (and `slots.json`, under its lock); returns how many. The store tidies itself."""
    removed = sum(_clear(folder) for folder in (home.trust, home.mirror))
    if not home.root.is_dir():
        return removed
    with FileLock(home.slots.with_suffix(".lock")):
        return removed + _clear(home.root, "slots.json") + _clear(home.root, "budget.json")


def _clear(folder: Path, name: str = "") -> int:
    found = [p for p in folder.glob(f".{name}*.tmp") if _LEFT.match(p.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)

"""When to fit again: by the clock, or because drift alarms; only when enough new labels are here, one process at a time."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from msgspec import Meta, field

from model_formats.core.document import Document, DocumentRefused, Value
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime

__all__ = ["LEAST_NEW", "TuneSchedule", "start_process"]

LEAST_NEW = 40
"""Labels that must have come since the last fit: fewer can teach nothing new."""

Start = Callable[[str, str], "subprocess.Popen[bytes]"]
"""(model, origin) -> the running process."""


class _Last(Value):
    at: AwareDatetime
    labels: Annotated[int, Meta(ge=0)]


class _Memory(Document):
    models: dict[str, _Last] = field(default_factory=dict)


class TuneSchedule:
    """Call `look()` from the agent's loop; it never waits. What was tried is stored, so that a restart does not repeat it."""

    def __init__(self, file: Path, start: Start, *, every: timedelta | None, on_drift: bool) -> None:
        """`every` None: not by the clock."""
        self._file, self._start, self._every, self._on_drift = file, start, every, on_drift
        self._running: tuple[str, subprocess.Popen[bytes]] | None = None

    def look(self, labels: Mapping[str, int], alarmed: Iterable[str], now: datetime) -> list[str]:
        """`labels`: how many labelled rows each served model has. Returns what ended or began, in words."""
        told = self._ended()
        if self._running is not None:
            return told
        memory, drifting = self._read(), set(alarmed)
        for model, count in sorted(labels.items()):
            last = memory.models.get(model)
            origin = self._due(last, count, now, drifting=model in drifting)
            if origin is not None:
                fresh = _Memory(models={**memory.models, model: _Last(at=now, labels=count)})
                atomic_write(self._file, fresh.canonical())
                self._running = (model, self._start(model, origin))
                return [*told, f"{model}: tuning began ({origin})"]
        return told

    def _due(self, last: _Last | None, count: int, now: datetime, *, drifting: bool) -> str | None:
        if count - (last.labels if last and last.labels <= count else 0) < LEAST_NEW:
            return None
        if self._on_drift and drifting:
            return "drift"
        if self._every is not None and (last is None or not timedelta(0) <= now - last.at < self._every):
            return "schedule"
        return None

    def _ended(self) -> list[str]:
        if self._running is None or (status := self._running[1].poll()) is None:
            return []
        model, self._running = self._running[0], None
        return [f"{model}: {'a new adapter serves' if status == 0 else f'tuning changed nothing (status {status})'}"]

    def _read(self) -> _Memory:
        try:
            return _Memory.parse(self._file.read_bytes())
        except (OSError, DocumentRefused):
            return _Memory()  # lost or unreadable: at worst one fit too many


def start_process(home: Path, niceness: int) -> Start:
    """Starts `process.py` on this home with a lower priority."""

    def start(model: str, origin: str) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-m", "spoke_agent.tuning.process", str(home), model, origin, str(niceness)]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    return start

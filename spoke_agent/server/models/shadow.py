"""The candidate beside the champion: live rows mirrored on idle time, answers compared, nobody kept waiting.

The buffer is bounded and never waits; what does not fit is counted as dropped. While the champion is busy the mirror keeps to a
tenth of the time, so that a rollout comes to an end at a busy site too. Rows that an adapter answered are compared against the
champion's own head, because the candidate has no adapter yet.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np

from model_formats.core.runtime import Array, HeadAdapter
from spoke_agent.server.models.batcher import Job
from spoke_agent.server.models.version import Answered, Version
from spoke_agent.server_api.messages import ShadowStats

__all__ = ["Mirror", "disagreements"]

Task = Literal["classification", "regression", "embedding"]

_BUFFER_ROWS: Final = 1024
_IDLE_S: Final = 0.002
_BUSY_S: Final = 0.05
_TOLERANCE: Final = 0.05
"""Largest difference, as a share of the champion's own spread, that still counts as agreement where there are no classes."""


class _Mirrored(NamedTuple):
    inputs: Mapping[str, Array]
    outputs: Sequence[Array] | None
    """The champion's own answer; None when it has to be computed (an adapter had answered)."""
    rows: int


class Mirror:
    """One candidate's trial. `watch` is a `Watcher` for the champion; `stop` ends it."""

    def __init__(self, champion: Version, candidate: Version, loop: asyncio.AbstractEventLoop) -> None:
        self.rows = 0
        self.disagreements = 0
        self.errors = 0
        self.dropped = 0
        self.champion = champion
        self.candidate = candidate
        self._loop = loop
        self._task: Task = candidate.loaded_version.package.contract.task
        self._fits = _same_inputs(champion, candidate)
        self._buffer: deque[_Mirrored] = deque()
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._busy = False

    def watch(self, version: Version, answered: Answered) -> None:
        """Keep rows for later, when there is room."""
        if version is not self.champion or self._stopped:
            return
        if not self._fits or self._waiting + answered.rows > _BUFFER_ROWS:
            self.dropped += answered.rows
            return
        own = None if answered.adapter_name else answered.outputs
        self._buffer.append(_Mirrored(answered.inputs, own, answered.rows))
        self._waiting += answered.rows
        if self._timer is None and not self._busy:
            self._timer = self._loop.call_later(_IDLE_S, self._tick)

    def stats(self) -> ShadowStats:
        """Counts so far."""
        return ShadowStats(rows=self.rows, disagreements=self.disagreements, errors=self.errors, dropped=self.dropped)

    def stop(self) -> None:
        """No more rows."""
        self._stopped = True
        self._buffer.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = None
        if self._stopped or not self._buffer:
            return
        self._busy = True
        mirrored = self._buffer.popleft()
        self._waiting -= mirrored.rows
        if mirrored.outputs is None:
            self._submit(self.champion, mirrored, lambda own: self._ask(mirrored, own))
        else:
            self._ask(mirrored, mirrored.outputs)

    def _ask(self, mirrored: _Mirrored, own: Sequence[Array]) -> None:
        if self._stopped:
            return
        self._submit(self.candidate, mirrored, lambda other: self._compare(own, other, mirrored.rows))

    def _submit(self, version: Version, mirrored: _Mirrored, then: "_Then") -> None:
        try:
            version.batcher.submit(_MirrorJob(mirrored, then, self._failed))
        except Exception:  # noqa: BLE001 - overload: a mirrored row is the first thing to give up
            self.dropped += mirrored.rows
            self._next()

    def _compare(self, own: Sequence[Array], other: Sequence[Array], rows: int) -> None:
        if self._stopped:
            return
        self.rows += rows
        self.disagreements += disagreements(self._task, self.champion.names, own, self.candidate.names, other, rows)
        self._next()

    def _failed(self, rows: int) -> None:
        self.rows += rows
        self.errors += rows
        self.disagreements += rows
        self._next()

    def _next(self) -> None:
        self._busy = False
        if self._buffer and self._timer is None and not self._stopped:
            cost = self.candidate.batcher.cost.of(self._buffer[0].rows)
            pause = _IDLE_S if self.champion.batcher.idle else max(_BUSY_S, 10 * cost)
            self._timer = self._loop.call_later(pause, self._tick)


def disagreements(
    task: Task, own_names: Sequence[str], own: Sequence[Array], other_names: Sequence[str], other: Sequence[Array], rows: int
) -> int:
    """Rows on which two answers differ in the first output.

    For classes another arg-max, otherwise beyond tolerance; in any case values that are not finite. An output of another name or
    shape disagrees on every row.
    """
    a, b = own[0], other[0]
    if own_names[0] != other_names[0] or a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return rows
    a, b = a.reshape(rows, -1), b.reshape(rows, -1)
    if a.dtype.kind == "f":
        finite = np.isfinite(b).all(axis=1)
        if task == "classification" and a.shape[1] > 1:
            return int((~finite | (a.argmax(axis=1) != b.argmax(axis=1))).sum())
        spread = float(a.std()) or 1.0
        return int((~finite | (np.abs(a - b).max(axis=1) > _TOLERANCE * spread)).sum())
    return int((a != b).any(axis=1).sum())


def _same_inputs(champion: Version, candidate: Version) -> bool:
    """Whether the candidate can be asked what the champion is asked (another signature cannot be mirrored)."""
    return [(t.name, t.datatype, t.shape) for t in champion.signature.inputs] == [
        (t.name, t.datatype, t.shape) for t in candidate.signature.inputs
    ]


class _Then(Protocol):
    def __call__(self, outputs: Sequence[Array], /) -> None: ...


class _MirrorJob(Job):
    """A mirrored batch in the queue. It is nobody's request, so it is not counted as one (see `Version`)."""

    mirrored = True
    started = 0.0

    def __init__(self, mirrored: _Mirrored, then: _Then, failed: Callable[[int], None]) -> None:
        self.inputs = mirrored.inputs
        self.rows = mirrored.rows
        self.key: object = self
        self.adapter: HeadAdapter | None = None
        self.deadline = float("inf")
        self._then = then
        self._failed = failed

    def finish(self, outputs: Sequence[Array]) -> None:
        """Compare."""
        self._then(outputs)

    def send(self) -> None:
        """Nobody waits."""

    def fail(self, error: Exception) -> None:
        """Count."""
        self._failed(self.rows)

"""Watches the models of one spoke: reads new rows, tests them, keeps the detector's state, offers verdicts to the outbox."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from model_formats.core.runtime import Array
from model_formats.statistics.reference_profile import ReferenceProfile, columns
from spoke_agent.data.store import DataStore, StoredBatch
from spoke_agent.drift.detector import Detector, budget_windows
from spoke_agent.drift.state import DriftState, Sums, read_state, write_state
from spoke_agent.drift.verdict import DriftWindow, judge, verdict_of
from spoke_agent.outbox.outbox import About, Outbox
from sync.core.clock import Clock
from sync.protocol.egress import MIN_ROWS, DriftVerdict, PerfEstimate, RffMean, rows_at_least

__all__ = ["DriftMonitor", "DriftTimes", "Estimator", "WatchedModel"]

_MOST_ROWS = 20_000
_TELL_EVERY = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """One model version to watch: the champion, as slots.json names it."""

    model: str
    version: int
    index: str


Estimator = Callable[[WatchedModel, ReferenceProfile, list[StoredBatch]], PerfEstimate | None]
"""Accuracy on some rows, from labels or from the package's regression; see `estimate.py`."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """New rows as columns, and where they came from."""

    table: Array
    batches: list[StoredBatch]
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class DriftTimes:
    """How often models are tested and verdicts sent."""

    window: timedelta = timedelta(minutes=15)
    """Shortest time between two tests of a model."""
    budget: timedelta = timedelta(days=91)
    """Shortest mean time between two false alarms."""
    tell_every: timedelta = _TELL_EVERY
    """How often an unchanged level is sent again."""


class DriftMonitor:
    """Call `tick()` from the agent's loop; it returns at once when there is nothing to do. Not thread-safe."""

    def __init__(
        self,
        folder: Path,
        data: DataStore,
        outbox: Outbox,
        *,
        watched: Callable[[], Iterable[WatchedModel]],
        profile: Callable[[str], ReferenceProfile | None],
        clock: Clock,
        times: DriftTimes | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        """`folder` keeps the state (home/drift); `profile` gives the reference of an index digest, None where there is none."""
        self._folder, self._data, self._outbox = folder, data, outbox
        self._watched, self._profile, self._clock = watched, profile, clock
        times = times or DriftTimes()
        self._window, self._tell_every, self._estimator = times.window, times.tell_every, estimator
        self._budget = budget_windows(times.budget, times.window)
        self._profiles: dict[str, ReferenceProfile | None] = {}

    def tick(self) -> list[tuple[str, DriftVerdict]]:
        """Test every watched model that has enough new rows, at most one window a model and call; returns what was found."""
        found = []
        for watched in self._watched():
            verdict = self._look(watched)
            if verdict is not None:
                found.append((watched.model, verdict))
        return found

    def state(self, model: str) -> DriftState | None:
        """What is remembered of a model, for status and tests."""
        return read_state(self._folder / f"{model}.json")

    def _look(self, watched: WatchedModel) -> DriftVerdict | None:
        profile = self._reference(watched.index)
        if profile is None:
            return None
        state, now = self._load(watched), self._clock.now()
        if state.tested is not None and timedelta(0) <= now - state.tested < self._window:
            return None
        taken = self._take(watched, profile, state)
        return None if taken is None else self._judge(watched, profile, state, taken, now)

    def _judge(
        self, watched: WatchedModel, profile: ReferenceProfile, state: DriftState, taken: _Taken, now: datetime
    ) -> DriftVerdict:
        window = judge(profile, taken.table)
        early = state.early.after(_confidence(profile, taken.table))
        detector = state.detector.after(window.p)
        verdict = verdict_of(profile, window, detector, confidence_fell=early.fell)
        sums = _added(state.sums, window, taken)
        tell = self._must_tell(state, detector, now)
        ready = sums.rows >= MIN_ROWS["drift_hist"]
        update = {
            "cursor": taken.batches[-1].id,
            "detector": detector,
            "early": early,
            "tested": now,
            "told": now if tell else state.told,
            "told_level": detector.level if tell else state.told_level,
            "sums": Sums(end=sums.end) if ready else sums,
        }
        # Saved before anything is offered: after a crash a verdict may be missing, but no row is ever counted twice.
        write_state(self._folder / f"{watched.model}.json", state.replace(**update))
        if tell:
            changed = detector.level != state.told_level
            self._outbox.offer(verdict, _about(watched, taken.start, taken.end, window.rows), urgent=changed)
            self._estimate(watched, profile, taken)
        if ready:
            self._offer_sums(watched, profile, sums)
        return verdict

    def _must_tell(self, state: DriftState, detector: Detector, now: datetime) -> bool:
        return detector.level != state.told_level or state.told is None or not timedelta(0) <= now - state.told < self._tell_every

    def _offer_sums(self, watched: WatchedModel, profile: ReferenceProfile, sums: Sums) -> None:
        if sums.start is None or sums.end is None:
            return
        about = _about(watched, sums.start, sums.end, sums.rows)
        self._outbox.offer_counts(profile, [list(c) for c in sums.counts], about)
        if profile.joint is not None:
            mean = tuple(round(v / sums.rows * 32768) for v in sums.joint)
            self._outbox.offer(RffMean(edges=profile.edges_digest, rows=rows_at_least(sums.rows), mean=mean), about)

    def _estimate(self, watched: WatchedModel, profile: ReferenceProfile, taken: _Taken) -> None:
        estimate = self._estimator(watched, profile, taken.batches) if self._estimator else None
        if estimate is not None:
            rows = sum(b.rows for b in taken.batches)
            self._outbox.offer(estimate, _about(watched, taken.start, taken.end, rows))

    def _take(self, watched: WatchedModel, profile: ReferenceProfile, state: DriftState) -> _Taken | None:
        least = MIN_ROWS["drift_verdict"]
        if self._data.count(watched.model, index=watched.index, after=state.cursor) < least:
            return None
        tables: list[Array] = []
        batches: list[StoredBatch] = []
        rows = 0
        for batch in self._data.batches(watched.model, index=watched.index, after=state.cursor, purpose="serving"):
            if rows >= _MOST_ROWS:
                break
            tables.append(columns(profile, batch.inputs, batch.outputs))
            batches.append(batch)
            rows += batch.rows
        if rows < least:
            return None
        start, end = min(float(b.times.min()) for b in batches), max(float(b.times.max()) for b in batches)
        start = max(start, state.sums.end.timestamp() if state.sums.end else start)
        return _Taken(np.concatenate(tables), batches, _time(start), _time(max(start, end)))

    def _load(self, watched: WatchedModel) -> DriftState:
        state = read_state(self._folder / f"{watched.model}.json")
        if state is not None and state.index == watched.index and state.detector.budget == self._budget:
            return state
        cursor = state.cursor if state is not None and state.index == watched.index else 0
        return DriftState(
            model=watched.model,
            version=watched.version,
            index=watched.index,
            cursor=cursor,
            detector=Detector(budget=self._budget),
        )

    def _reference(self, index: str) -> ReferenceProfile | None:
        if index not in self._profiles:
            self._profiles = {index: self._profile(index), **dict(list(self._profiles.items())[-7:])}
        return self._profiles[index]


def _added(sums: Sums, window: DriftWindow, taken: _Taken) -> Sums:
    before = sums.counts or tuple(tuple(0 for _ in c) for c in window.counts)
    joint = sums.joint or tuple(0.0 for _ in window.joint_sum)
    return Sums(
        rows=sums.rows + window.rows,
        start=sums.start or taken.start,
        end=taken.end,
        counts=tuple(tuple(int(a + b) for a, b in zip(x, y, strict=True)) for x, y in zip(before, window.counts, strict=True)),
        joint=tuple(float(a + b) for a, b in zip(joint, window.joint_sum, strict=True)),
    )


def _confidence(profile: ReferenceProfile, table: Array) -> Array:
    at = next((i for i, f in enumerate(profile.features) if f.source == "confidence"), None)
    return np.empty(0) if at is None else table[:, at]


def _about(watched: WatchedModel, start: datetime, end: datetime, rows: int) -> About:
    return About(watched.model, watched.version, watched.index, start, end, rows)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)

"""Batches of what arrived together. No timers: what is there when a run can start goes into it.

A `Batcher` belongs to one loaded version. Jobs that arrive in one turn of the event loop are grouped by key (trailing shapes and
adapter) and run as one batch, on the loop itself when a run is short (`placement` loop) or on the batcher's own thread when it is
not. On the loop, jobs run at once when enough wait, for more would make no row cheaper. Each job gets exactly its own rows back.
A connection whose request follows its own last one while nothing waits shares a run with nobody: its job runs at once, past the
queue (`run_direct`). The queue is bounded by the time it would take to work it off, not by a count alone.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, Protocol

import numpy as np
from msgspec import Struct

from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Array, HeadAdapter, InputRefused
from spoke_agent.server_api.errors import DeadlinePassed, Overloaded

__all__ = ["Batch", "Cost", "Job", "Batcher", "Placement", "RowsWrong", "Run"]

Placement = Literal["loop", "thread"]

_now = time.monotonic
_ENOUGH: Final = 48
"""Jobs that wait when a run on the loop starts at once. Above it, parsed requests outgrow a core's cache before they are run (a
tenth slower at 96 callers), and the last ones read wait for all the others; well below, callers fall out of step and batches get
small (a fifth slower at 32)."""


class Cost(Struct, frozen=True):
    """What a run takes here, measured at load: `fixed_s + rows * row_s`."""

    fixed_s: float
    row_s: float

    def of(self, rows: int) -> float:
        """Estimated seconds for a batch."""
        return self.fixed_s + rows * self.row_s

    def rows_in(self, seconds: float) -> int:
        """How many rows fit into a time, at least one."""
        return max(1, int((seconds - self.fixed_s) / max(self.row_s, 1e-9)))


class Run(Protocol):
    """Runs a model."""

    def __call__(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, adapter: HeadAdapter | None, /
    ) -> Sequence[Array]:
        """Run one batch: the asked outputs in order, all when None."""


class Job(Protocol):
    """What a batcher needs of a request."""

    mirrored: bool = False
    """True for a copy of live traffic: nobody waits for it, it is neither counted nor captured."""

    inputs: Mapping[str, Array]
    rows: int
    key: object
    """Jobs of equal key may share a run."""
    adapter: HeadAdapter | None
    deadline: float
    """Monotonic time after which nobody waits for the answer; infinity for none."""
    caller: int = 0
    """Equal for jobs of one connection that came one after the other; 0 where that is not known."""

    @property
    def started(self) -> float:
        """Monotonic time at which it arrived."""

    def finish(self, outputs: Sequence[Array]) -> None:
        """Take exactly this job's rows of each output, and make an answer of them. What it raises, it is told by `fail`."""

    def send(self) -> None:
        """Give the answer to who waits for it. By then all of a batch have made theirs: each step for all, then the next."""

    def fail(self, error: Exception) -> None:
        """Take the reason why there is none."""


class Batch(Struct):
    """Jobs of one key, and what came of them."""

    jobs: list[Job]
    rows: int
    inputs: Mapping[str, Array]
    outputs: Sequence[Array] = ()
    error: Exception | None = None
    """Why nobody gets an answer."""
    refused: Sequence[tuple[Job, Exception]] = ()
    """Jobs that ran alone, since the model could not compute all of them together, and failed."""
    started: float = 0.0
    """Monotonic time at which the run began."""
    seconds: float = 0.0
    direct: bool = False
    """Whether it ran past the queue."""


Within = Callable[[Mapping[str, Array]], bool]
Enforce = Callable[[Job], bool]
Done = Callable[[Batch], None]


class Batcher:
    """The queue of one loaded version.

    `run` runs a batch, and is always asked for `outputs`. `within` looks at its values before; when some are out of contract it
    is asked of each job, and `enforce` says of those that are whether they run all the same (it has failed those that do not).
    `done` sees every batch after its jobs are answered (counting, capture, mirror). All but `run` are called on the loop.
    """

    def __init__(
        self,
        run: Run,
        cost: Cost,
        placement: Placement,
        *,
        loop: asyncio.AbstractEventLoop,
        name: str = "batcher",
        outputs: Sequence[str] | None = None,
        batched: bool = True,
        max_rows: int = 256,
        slice_s: float = 0.005,
        max_wait_s: float = 2.0,
        max_jobs: int = 4096,
        within: Within = lambda _: True,
        enforce: Enforce = lambda _: True,
        done: Done | None = None,
    ) -> None:
        self.cost = cost
        self.placement = placement
        self.depth_rows = 0
        """Rows that wait or run."""
        self._run, self._outputs = run, outputs
        self._within = within
        self._enforce = enforce
        self._done = done
        self._batched = batched
        self._rows_a_batch = min(max_rows, cost.rows_in(max(slice_s, cost.of(1)))) if batched else 1
        self._max_wait_s = max_wait_s
        self._max_jobs = max_jobs
        self._queue: deque[Job] = deque()
        self._loop = loop
        self._last_caller = 0
        self._scheduled = False
        self._closed = False
        self._worker = _Worker(self, self._loop, name) if placement == "thread" else None

    @property
    def idle(self) -> bool:
        """Nothing waits or runs."""
        return self.depth_rows == 0

    @property
    def rows_a_batch(self) -> int:
        """The most rows one run takes (a single larger request runs alone)."""
        return self._rows_a_batch

    def check_room(self) -> float:
        """Seconds of work that wait. Raises Overloaded when that is longer than anybody should wait."""
        wait = self.depth_rows * self.cost.row_s
        if len(self._queue) >= self._max_jobs or wait > self._max_wait_s:
            raise Overloaded(f"the queue is full ({len(self._queue)} requests, about {wait:.2f} s of work)")
        return wait

    def submit(self, job: Job) -> None:
        """On the loop: answer a job at once when its caller is alone, else queue it. Raises Overloaded, DeadlinePassed."""
        if job.caller == self._last_caller != 0 and (batch := self.run_direct(job)) is not None:
            self._answer(batch)
            return
        if not job.mirrored:
            self._last_caller = job.caller
        wait = self.check_room()
        if _now() + wait > job.deadline:
            raise DeadlinePassed(f"about {wait * 1e3:.0f} ms of work wait before this request; its deadline is sooner")
        self.depth_rows += job.rows
        self._queue.append(job)
        if self._worker is None and len(self._queue) >= _ENOUGH:
            self._run_here(self._take())
        elif not self._scheduled:
            self._schedule()

    def run_direct(self, job: Job) -> Batch | None:
        """On any thread: run one job past the queue. Who calls it answers the caller, then has the batch counted.

        None for what must queue: a run that is not short, something that waits already, more rows than a run takes, a deadline
        that has passed, values out of contract.
        """
        if self._worker is not None or self.depth_rows or job.rows > self._rows_a_batch:
            return None
        if job.deadline < _now() or not self._within(job.inputs):
            return None
        batch = Batch([job], job.rows, job.inputs, direct=True)
        self.execute(batch)
        return batch

    def close(self) -> None:
        """What is queued is still answered; then a thread ends. Nothing may be submitted afterwards."""
        self._closed = True
        if self._worker is not None and self.idle:
            self._worker.close()

    def run(self, inputs: Mapping[str, Array], rows: int, adapter: HeadAdapter | None) -> Sequence[Array]:
        """Run the model, on any thread. Raises RowsWrong, and whatever its engine raises."""
        outputs = self._run(inputs, self._outputs, adapter)
        for output in outputs:
            if self._batched and len(output) != rows:
                raise RowsWrong(f"the model gave another number of rows than the {rows} it got")
        return outputs

    def execute(self, batch: Batch) -> None:
        """Run a batch, on the loop or on the batcher's thread; an error is kept for the callers."""
        started = batch.started = _now()
        try:
            batch.outputs = self.run(batch.inputs, batch.rows, batch.jobs[0].adapter)
        except InputRefused as e:
            if len(batch.jobs) == 1:
                batch.error = e
            else:
                self._run_each(batch)
        except Exception as e:  # noqa: BLE001 - engines raise many kinds; every caller of the batch is told
            batch.error = e
        batch.seconds = _now() - started

    def _run_each(self, batch: Batch) -> None:
        """Run the jobs of a batch one by one: somebody's inputs cannot be computed, and the others shall not pay for it."""
        good: list[Job] = []
        parts: list[Sequence[Array]] = []
        refused: list[tuple[Job, Exception]] = []
        for job in batch.jobs:
            try:
                parts.append(self.run(job.inputs, job.rows, job.adapter))
                good.append(job)
            except Exception as e:  # noqa: BLE001 - as in `execute`
                refused.append((job, e))
        batch.jobs, batch.refused = good, refused
        batch.rows = sum(job.rows for job in good)
        if (kept := _join(good)) is not None:
            batch.inputs = kept.inputs
            batch.outputs = [np.concatenate(same) for same in zip(*parts, strict=True)]

    def ran(self, batch: Batch) -> None:
        """On the loop, after the thread ran a batch: the next one first, so that the thread does not wait for the answering."""
        assert self._worker is not None  # noqa: S101 - only a worker calls this
        self._worker.busy = False
        if self._queue:
            self._turn()
        self._deliver(batch)
        if self._closed and self.idle:
            self._worker.close()

    # ---- on the loop

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        worker = self._worker
        if not self._queue or (worker is not None and worker.busy):
            return
        batch = self._take()
        if batch is not None and worker is not None:
            worker.start(batch)
            return
        if self._queue:
            self._schedule()
        self._run_here(batch)

    def _run_here(self, batch: Batch | None) -> None:
        if batch is not None:
            self.execute(batch)
            self._deliver(batch)

    def _take(self) -> Batch | None:
        """The next batch: jobs of the first one's key, in order, up to the rows that fit."""
        waiting = self._queue
        first = waiting.popleft()
        jobs, rows, key = [first], first.rows, first.key
        if self._batched:
            kept: list[Job] = []
            while waiting and rows < self._rows_a_batch:
                job = waiting.popleft()
                if job.key == key and rows + job.rows <= self._rows_a_batch:
                    jobs.append(job)
                    rows += job.rows
                else:
                    kept.append(job)
                    if len(kept) > 32:
                        break
            waiting.extendleft(reversed(kept))
        return self._joined(jobs)

    def _joined(self, jobs: list[Job]) -> Batch | None:
        now = _now()
        for job in jobs:
            if job.deadline < now:
                jobs = self._in_time(jobs, now)
                break
        batch = _join(jobs)
        if batch is None or self._within(batch.inputs):
            return batch
        kept = [job for job in batch.jobs if self._within(job.inputs) or self._enforce(job)]
        self.depth_rows -= batch.rows - sum(job.rows for job in kept)
        return _join(kept)

    def _in_time(self, jobs: list[Job], now: float) -> list[Job]:
        late = [job for job in jobs if job.deadline < now]
        self.depth_rows -= sum(job.rows for job in late)
        for job in late:
            job.fail(DeadlinePassed("the deadline passed before the request could run"))
        return [job for job in jobs if job.deadline >= now]

    def _deliver(self, batch: Batch) -> None:
        self.depth_rows -= batch.rows + sum(job.rows for job, _ in batch.refused)
        self._answer(batch)

    def _answer(self, batch: Batch) -> None:
        for job, error in batch.refused:
            job.fail(error)
        if batch.error is not None:
            for job in batch.jobs:
                job.fail(batch.error)
        else:
            answered = []
            for job, outputs in _shares(batch):
                try:
                    job.finish(outputs)
                except Exception as e:  # noqa: BLE001 - a fault is one caller's, not everybody's of the batch
                    job.fail(e)
                else:
                    answered.append(job)
            for job in answered:
                job.send()
        if self._done is not None:
            self._done(batch)


def _shares(batch: Batch) -> Iterable[tuple[Job, Sequence[Array]]]:
    """Each job with its own rows."""
    if len(batch.jobs) == 1:
        return ((batch.jobs[0], batch.outputs),)
    shares, start = [], 0
    for job in batch.jobs:
        end = start + job.rows
        shares.append((job, [output[start:end] for output in batch.outputs]))
        start = end
    return shares


def _join(jobs: list[Job]) -> Batch | None:
    if not jobs:
        return None
    if len(jobs) == 1:
        return Batch(jobs, jobs[0].rows, jobs[0].inputs)
    inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}
    return Batch(jobs, sum(job.rows for job in jobs), inputs)


class RowsWrong(SpokeshaveError):
    """A model whose contract says that rows are independent, and they are not."""

    code = "model_rows_wrong"
    hint = "The contract's first dimension must be the batch, in every input and output; report the model to its author."


class _Worker:
    """The thread of a batcher: runs one batch at a time, and wakes the loop once for each."""

    def __init__(self, batcher: Batcher, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.busy = False
        self._batcher = batcher
        self._loop = loop
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def start(self, batch: Batch) -> None:
        """Hand over the next batch (on the loop, while not busy)."""
        self.busy = True
        self._batches.put(batch)

    def close(self) -> None:
        """End after the batch at hand."""
        self._batches.put(None)

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._batcher.execute(batch)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._batcher.ran, batch)

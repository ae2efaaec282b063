"""A loaded version at work: its session, its lane, its counts, and who else sees its batches (capture, mirror)."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Protocol

from model_formats.errors import SpokeshaveError
from model_formats.runtimes.base import Array, HeadAdapter
from spoke_agent.serve.answers import GoldenState, LoadedState, RoleStats
from spoke_agent.serve.engine import Engined
from spoke_agent.serve.inference_protocol import Words
from spoke_agent.serve.metrics import ModelCounts, VersionCounts
from spoke_agent.serve.scheduler import Batch, Job, Lane, joined
from spoke_agent.serve.settings import ServeSettings
from spoke_agent.serve.signature import extremes
from sync.serving import Serving

_now = time.monotonic

__all__ = ["Alone", "Version", "Watcher"]


class Alone(Job, Protocol):
    """A job that ran outside the queue."""

    batch: Batch
    """Its run."""
    seconds: float
    """From its arrival to the end of its run."""


Watcher = Callable[["Version", Batch], None]
"""Sees every batch that ran well, on the loop, after its callers have their answers. Must be quick."""


class Version:
    """Made on the loop from what the loading thread prepared."""

    def __init__(
        self, engined: Engined, settings: ServeSettings, loop: asyncio.AbstractEventLoop, counts: ModelCounts | None = None
    ) -> None:
        self.engined = engined
        self.model = engined.model
        self.number = engined.slot.version
        self.index = engined.slot.index
        self.file = engined.file
        self.signature = engined.signature
        self.names = engined.signature.output_names
        self.words = Words(self.model, str(self.number), [(t.name, t.datatype) for t in engined.signature.outputs])
        self.counts = VersionCounts()
        self.model_counts = counts or ModelCounts()
        self.watchers: tuple[Watcher, ...] = ()
        self._session = engined.session
        self.last_caller = 0
        """The connection that asked last; 0 where several did at once."""
        self.lane = Lane(
            self.run,
            engined.cost,
            engined.placement,
            loop=loop,
            name=f"infer-{engined.model}-{engined.slot.version}",
            batched=engined.signature.batched,
            max_rows=settings.max_batch,
            slice_s=settings.slice_ms / 1e3,
            max_wait_s=settings.max_wait_s,
            within=engined.signature.within,
            enforce=self._enforce,
            done=self.done,
        )

    def serving(self, *, adapted: bool) -> Serving:
        """How it is told to the hub."""
        return Serving(
            model=self.model,
            version=self.number,
            index=self.index,
            file=self.file,
            variant=self.engined.slot.variant,
            engine=self.engined.engine,
            adapted=adapted,
        )

    def state(self) -> LoadedState:
        """How it is told to the agent."""
        e = self.engined
        return LoadedState(
            loaded=True,
            version=self.number,
            index=self.index,
            variant=e.slot.variant,
            file=e.file,
            engine=e.engine,
            placement=e.placement,
            golden=GoldenState(ok=e.golden.ok, worst=e.golden.worst, detail=e.golden.detail),
            latency_ms=e.latency_ms,
            row_ms_batch=e.row_ms_batch,
            load_ms=e.load_ms,
            rss_mb=e.rss_mb,
        )

    def stats(self) -> RoleStats:
        """Counts so far."""
        c = self.counts
        return RoleStats(
            version=self.number,
            index=self.index,
            requests=c.requests,
            rows=c.rows,
            errors=c.errors,
            latency_ms_p50=_ms(c.run_us.quantile(0.5)),
            request_ms_p50=_ms(c.request_us.quantile(0.5)),
            latency_ms=self.engined.latency_ms,
        )

    def close(self) -> None:
        """Answer what is queued, then let go."""
        self.lane.close()

    @property
    def quick(self) -> bool:
        """Whether a request may run at once where it comes in."""
        return self.lane.quick

    def taken(self, job: Job) -> None:
        """On the loop: count a request that is taken."""
        self.model_counts.requests += 1
        self.model_counts.last_request = job.started

    def run_alone(self, job: Job) -> Batch:
        """On any thread: run one job that is in contract, outside the queue. Afterwards the loop calls `ran_alone`."""
        batch = Batch([job], job.rows, job.inputs)
        self.lane.execute(batch)
        return batch

    def run(self, inputs: Mapping[str, Array], adapter: HeadAdapter | None) -> Sequence[Array]:
        """Run one batch: the outputs callers may see, in order."""
        return self._session.run(inputs, self.names, adapter)

    def _enforce(self, job: Job) -> bool:
        self.model_counts.out_of_contract += 1
        try:
            job.inputs = self.signature.enforce(job.inputs)
        except SpokeshaveError as e:
            job.fail(e)
            return False
        return True

    def ran_alone(self, jobs: Sequence[Alone]) -> None:
        """On the loop, after the callers have their answers: count jobs of one key that ran alone, each for itself, and show
        them to the watchers together.
        """
        counts, good, rows = self.counts, [], 0
        for job in jobs:
            batch = job.batch
            counts.queue_us.add(max(0, int((batch.started - job.started) * 1e6)))
            counts.run_us.add(int(batch.seconds * 1e6))
            counts.request_us.add(int(job.seconds * 1e6))
            counts.batch_rows.add(batch.rows)
            rows += batch.rows
            if batch.error is None:
                good.append(batch)
        counts.requests += len(jobs)
        counts.rows += rows
        counts.errors += len(jobs) - len(good)
        self.model_counts.requests += len(jobs)
        self.model_counts.last_request = jobs[-1].started
        for batch in joined(good, self.lane.rows_a_batch):
            self._show(batch)

    def done(self, batch: Batch) -> None:
        """On the loop, after a batch's callers have their answers: count, and show it to the watchers."""
        if batch.jobs[0].mirrored:
            return
        counts = self.counts
        requests = len(batch.jobs)
        counts.requests += requests
        counts.rows += batch.rows
        counts.queue_us.add(max(0, int((batch.started - batch.jobs[0].started) * 1e6)))
        counts.run_us.add(int(batch.seconds * 1e6))
        counts.batch_rows.add(batch.rows)
        if batch.error is not None:
            counts.errors += requests
            return
        now = _now()
        for job in batch.jobs:
            counts.request_us.add(int((now - job.started) * 1e6))
        self._show(batch)

    def _show(self, batch: Batch) -> None:
        if not _finite(batch.outputs):
            self.counts.errors += len(batch.jobs)
        for watcher in self.watchers:
            watcher(self, batch)


def _finite(outputs: Sequence[Array]) -> bool:
    for output in outputs:
        if output.dtype.kind == "f" and output.size:
            low, high = extremes(output)
            if not (isfinite(low) and isfinite(high)):
                return False
    return True


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1e3

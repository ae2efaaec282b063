"""A loaded version at work: its session, its batcher, its counts, and who else sees its batches (capture, mirror)."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Final, Protocol, cast

import numpy as np
from msgspec import Struct

from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Array, HeadAdapter, InputRefused
from spoke_agent.server.metrics import ModelCounts, VersionCounts
from spoke_agent.server.models.batcher import Batch, Batcher, Job
from spoke_agent.server.models.contract_check import all_between
from spoke_agent.server.models.loader import LoadedVersion
from spoke_agent.server.protocol.json_codec import ResponseTemplate
from spoke_agent.server.settings import ServeSettings
from spoke_agent.server_api.messages import GoldenState, LoadedState, RoleStats
from sync.protocol.serving import Serving

__all__ = ["Answered", "CountedJob", "DirectRun", "Version", "Watcher"]

_SHOWN_ROWS: Final = 32
"""Rows that are shown to the watchers at once, as when some callers share a run: capture keeps all of them or none."""
_now = time.monotonic


class CountedJob(Job, Protocol):
    """A job whose caller is known to capture and to the counts: a request, and no mirrored one."""

    @property
    def request_id(self) -> str:
        """Empty when the caller gave none."""

    adapter_name: str
    """Empty for the hub's own head."""


class DirectRun(Struct):
    """A request that ran without the queue and has its answer. Times are monotonic."""

    inputs: Mapping[str, Array]
    outputs: Sequence[Array]
    rows: int
    request_id: str
    adapter_name: str
    started: float
    """When it arrived."""
    ran: float
    """When its run began."""
    run_s: float
    request_s: float
    """From its arrival to its answer."""


class Answered(Struct):
    """Rows that ran well and whose callers have their answers, as watchers see them: of one adapter and shape."""

    inputs: Mapping[str, Array]
    outputs: Sequence[Array]
    rows: int
    request_ids: Sequence[str]
    """Of each request; empty for one that has none."""
    counts: Sequence[int]
    """Rows of each request."""
    adapter_name: str
    """Empty for the hub's own head."""


Watcher = Callable[["Version", Answered], None]
"""On the loop. Must be quick."""


class Version:
    """Made on the loop from what the loading thread prepared."""

    def __init__(
        self,
        loaded_version: LoadedVersion,
        settings: ServeSettings,
        loop: asyncio.AbstractEventLoop,
        counts: ModelCounts | None = None,
    ) -> None:
        self.loaded_version = loaded_version
        self.model = loaded_version.model
        self.number = loaded_version.slot.version
        self.index = loaded_version.slot.index
        self.file = loaded_version.file
        self.signature = loaded_version.signature
        self.names = loaded_version.signature.output_names
        self.words = ResponseTemplate(
            self.model, str(self.number), [(t.name, t.datatype) for t in loaded_version.signature.outputs]
        )
        self.counts = VersionCounts()
        self.model_counts = counts or ModelCounts()
        self.watchers: tuple[Watcher, ...] = ()
        self.last_caller = 0
        """The connection that asked last; 0 where several did at once."""
        self.batcher = Batcher(
            loaded_version.session.run,
            loaded_version.cost,
            loaded_version.placement,
            loop=loop,
            name=f"infer-{loaded_version.model}-{loaded_version.slot.version}",
            outputs=self.names,
            batched=loaded_version.signature.batched,
            max_rows=settings.max_batch,
            slice_s=settings.slice_ms / 1e3,
            max_wait_s=settings.max_wait_s,
            within=loaded_version.signature.within,
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
            variant=self.loaded_version.slot.variant,
            engine=self.loaded_version.engine,
            mode=self.loaded_version.session.mode,
            cpu_class=self.loaded_version.cpu_class,
            adapted=adapted,
            latency_us=round(self.loaded_version.latency_ms * 1e3),
            row_us=round(self.loaded_version.row_ms_batch * 1e3),
        )

    def state(self) -> LoadedState:
        """How it is told to the agent."""
        e = self.loaded_version
        return LoadedState(
            loaded=True,
            version=self.number,
            index=self.index,
            variant=e.slot.variant,
            file=e.file,
            engine=e.engine,
            mode=e.session.mode,
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
            variant=self.loaded_version.slot.variant,
            engine=self.loaded_version.engine,
            mode=self.loaded_version.session.mode,
            requests=c.requests,
            rows=c.rows,
            errors=c.errors,
            latency_ms_p50=_ms(c.run_us.quantile(0.5)),
            request_ms_p50=_ms(c.request_us.quantile(0.5)),
            latency_ms=self.loaded_version.latency_ms,
        )

    def close(self) -> None:
        """Answer what is queued, then let go."""
        self.batcher.close()

    def taken(self, job: Job) -> None:
        """On the loop: count a request that is taken."""
        self.model_counts.requests += 1
        self.model_counts.last_request = job.started

    def run_direct(
        self, inputs: Mapping[str, Array], rows: int, adapter: HeadAdapter | None
    ) -> tuple[Sequence[Array], float, float] | None:
        """On any thread, while the batcher is `idle_inline`: run one request without the queue. `ran_alone` counts it afterwards.

        Returns the outputs, the monotonic time at which the run began, and its seconds; None for what the batcher must judge and
        tell: values out of contract, or a run that failed.
        """
        if not self.signature.within(inputs):
            return None
        ran = _now()
        try:
            outputs = self.batcher.run(inputs, rows, adapter)
        except Exception:  # noqa: BLE001 - engines raise many kinds
            return None
        return outputs, ran, _now() - ran

    def ran_alone(self, lones: Sequence[DirectRun]) -> None:
        """On the loop, after their callers have the answers: count requests of one adapter and shape that ran each for itself,
        and show them to the watchers together.
        """
        counts, rows = self.counts, 0
        for direct in lones:
            counts.queue_us.add(max(0, int((direct.ran - direct.started) * 1e6)))
            counts.run_us.add(int(direct.run_s * 1e6))
            counts.request_us.add(int(direct.request_s * 1e6))
            counts.batch_rows.add(direct.rows)
            rows += direct.rows
        counts.requests += len(lones)
        counts.rows += rows
        self.model_counts.requests += len(lones)
        self.model_counts.last_request = lones[-1].started
        for answered in _together(lones):
            self._show(answered)

    def _enforce(self, job: Job) -> bool:
        self.model_counts.out_of_contract += 1
        try:
            job.inputs = self.signature.enforce(job.inputs)
        except SpokeshaveError as e:
            job.fail(e)
            return False
        return True

    def done(self, batch: Batch) -> None:
        """On the loop, after a batch's callers have their answers: count, and show it to the watchers."""
        counts = self.counts
        counts.errors += sum(not isinstance(error, InputRefused) for job, error in batch.refused if not job.mirrored)
        if not batch.jobs or batch.jobs[0].mirrored:
            return
        requests = len(batch.jobs)
        counts.requests += requests
        counts.rows += batch.rows
        counts.queue_us.add(max(0, int((batch.started - batch.jobs[0].started) * 1e6)))
        counts.run_us.add(int(batch.seconds * 1e6))
        counts.batch_rows.add(batch.rows)
        if batch.error is not None:
            counts.errors += 0 if isinstance(batch.error, InputRefused) else requests
            return
        now = _now()
        for job in batch.jobs:
            counts.request_us.add(int((now - job.started) * 1e6))
        jobs = cast("Sequence[CountedJob]", batch.jobs)
        ids, rows = [job.request_id for job in jobs], [job.rows for job in jobs]
        self._show(Answered(batch.inputs, batch.outputs, batch.rows, ids, rows, jobs[0].adapter_name))

    def _show(self, answered: Answered) -> None:
        if not _finite(answered.outputs):
            self.counts.errors += len(answered.request_ids)
        for watcher in self.watchers:
            watcher(self, answered)


def _together(lones: Sequence[DirectRun]) -> Iterator[Answered]:
    """As few as may be, of at most `_SHOWN_ROWS` rows (a request of more stays alone)."""
    start = rows = 0
    for place, direct in enumerate(lones):
        if rows and rows + direct.rows > _SHOWN_ROWS:
            yield _joined(lones[start:place], rows)
            start, rows = place, 0
        rows += direct.rows
    if rows:
        yield _joined(lones[start:], rows)


def _joined(lones: Sequence[DirectRun], rows: int) -> Answered:
    first = lones[0]
    inputs, outputs = first.inputs, first.outputs
    if len(lones) > 1:
        inputs = {name: np.concatenate([direct.inputs[name] for direct in lones]) for name in inputs}
        outputs = [np.concatenate(parts) for parts in zip(*(direct.outputs for direct in lones), strict=True)]
    return Answered(
        inputs, outputs, rows, [direct.request_id for direct in lones], [direct.rows for direct in lones], first.adapter_name
    )


def _finite(outputs: Sequence[Array]) -> bool:
    for output in outputs:  # noqa: SIM110 - of every request, and a generator costs as much as the look
        if output.dtype.kind == "f" and not all_between(output, -inf, inf):
            return False
    return True


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1e3

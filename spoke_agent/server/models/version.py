"""A loaded version at work: its session, its batcher, its counts, and who else sees its batches (capture, mirror)."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Protocol, cast

from msgspec import Struct

from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Array, InputRefused
from spoke_agent.server.metrics import ModelCounts, VersionCounts
from spoke_agent.server.models.batcher import Batch, Batcher, Job
from spoke_agent.server.models.contract_check import all_between
from spoke_agent.server.models.loader import LoadedVersion
from spoke_agent.server.protocol.json_codec import ResponseTemplate
from spoke_agent.server.settings import ServeSettings
from spoke_agent.server_api.messages import GoldenState, LoadedState, RoleStats
from sync.protocol.serving import Serving

__all__ = ["Answered", "CountedJob", "Version", "Watcher"]

_now = time.monotonic


class CountedJob(Job, Protocol):
    """A job whose caller is known to capture and to the counts: a request, and no mirrored one."""

    @property
    def request_id(self) -> str:
        """Empty when the caller gave none."""

    adapter_name: str
    """Empty for the hub's own head."""


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
        counts.direct += requests if batch.direct else 0
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


def _finite(outputs: Sequence[Array]) -> bool:
    for output in outputs:  # noqa: SIM110 - of every request, and a generator costs as much as the look
        if output.dtype.kind == "f" and not all_between(output, -inf, inf):
            return False
    return True


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1e3

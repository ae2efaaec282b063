"""The page at `/metrics`. Every name here is documented in docs/reference/metrics.md."""

from collections.abc import Iterator

from spoke_agent.server.metrics import Page, VersionCounts, cpu_seconds, rss_bytes
from spoke_agent.server.models.capture import Capture
from spoke_agent.server.models.model_set import ModelSet

__all__ = ["render_metrics"]

Labels = dict[str, object]


def render_metrics(models: ModelSet, capture: Capture | None, uptime_s: float) -> bytes:
    """Counters and histograms of this process."""
    page = Page()
    page.family("spoke_uptime_seconds", "gauge", "Time since the server started.", [({}, uptime_s)])
    page.family("spoke_resident_memory_bytes", "gauge", "Resident memory of the server.", [({}, rss_bytes())])
    page.family("spoke_cpu_seconds_total", "counter", "User and system time of the server.", [({}, cpu_seconds())])
    if capture is not None:
        page.family("spoke_captured_rows_total", "counter", "Rows stored locally.", [({}, capture.stored_rows)])
        page.family(
            "spoke_capture_dropped_rows_total", "counter", "Rows not kept: budget or fault.", [({}, capture.dropped_rows)]
        )
    _models(page, models)
    _versions(page, models)
    return page.render()


def _models(page: Page, models: ModelSet) -> None:
    counts = [({"model": name}, c) for name, c in models.counts.items()]
    page.family("spoke_requests_total", "counter", "Infer requests taken.", [(k, c.requests) for k, c in counts])
    page.family(
        "spoke_bad_requests_total", "counter", "Infer requests refused with 4xx.", [(k, c.bad_requests) for k, c in counts]
    )
    page.family("spoke_shed_requests_total", "counter", "Infer requests refused under load.", [(k, c.shed) for k, c in counts])
    page.family(
        "spoke_out_of_contract_total",
        "counter",
        "Requests with values out of contract.",
        [(k, c.out_of_contract) for k, c in counts],
    )
    shadows = [({"model": name}, p.mirror.stats()) for name, p in models.live.items() if p.mirror is not None]
    page.family("spoke_shadow_rows_total", "counter", "Rows mirrored to the candidate.", [(k, s.rows) for k, s in shadows])
    page.family(
        "spoke_shadow_disagreements_total", "counter", "Mirrored rows that differ.", [(k, s.disagreements) for k, s in shadows]
    )
    page.family("spoke_shadow_dropped_rows_total", "counter", "Rows not mirrored.", [(k, s.dropped) for k, s in shadows])
    answering = [
        ({"model": n, "version": p.answering.number, "engine": p.answering.loaded_version.engine, "file": p.answering.file}, 1.0)
        for n, p in models.live.items()
        if p.answering is not None
    ]
    page.family("spoke_serving_info", "gauge", "The version that answers.", answering)


def _versions(page: Page, models: ModelSet) -> None:
    found = list(_counts(models))
    paths = [({**k, "path": path}, n) for k, c in found for path, n in (("direct", c.direct), ("batched", c.requests - c.direct))]
    page.family("spoke_answered_requests_total", "counter", "Infer requests run, by their path: direct or batched.", paths)
    page.family("spoke_rows_total", "counter", "Rows run.", [(k, c.rows) for k, c in found])
    page.family("spoke_errors_total", "counter", "Requests that failed inside the model.", [(k, c.errors) for k, c in found])
    page.histograms("spoke_request_seconds", "From arrival to answer.", [(k, c.request_us) for k, c in found], scale=1e-6)
    waits = [(k, c.queue_us) for k, c in found]
    page.histograms("spoke_queue_seconds", "Longest wait of a request in each run.", waits, scale=1e-6)
    page.histograms("spoke_run_seconds", "Run time of a batch.", [(k, c.run_us) for k, c in found], scale=1e-6)
    page.histograms("spoke_batch_rows", "Rows in a batch.", [(k, c.batch_rows) for k, c in found])


def _counts(models: ModelSet) -> Iterator[tuple[Labels, VersionCounts]]:
    for name, current in models.live.items():
        for version in current.versions:
            role = (
                "answering"
                if version is current.answering
                else "challenger"
                if version is current.challenger
                else "candidate"
                if version is current.candidate
                else "standby"
            )
            yield {"model": name, "version": version.number, "role": role}, version.counts

from datetime import timedelta
from pathlib import Path

from spoke_agent.outbox.operations import latency_buckets, operations, read_metrics
from spoke_agent.server.metrics import Histogram, Page
from sync.protocol.egress import EgressRecord
from tests.spoke_agent.outbox.test_the_outbox_opens_only_by_the_rules import FakeTransport, outbox


def page(*microseconds: int) -> str:
    histogram, metrics = Histogram(), Page()
    for value in microseconds:
        histogram.add(value)
    metrics.histograms("spoke_request_seconds", "From arrival to answer.", [({"model": "a"}, histogram)], scale=1e-6)
    return metrics.render().decode()


def test_latency_is_told_in_doubling_milliseconds_and_whole_tens():
    buckets = latency_buckets(page(*[500] * 23, *[1500] * 14, *[900_000] * 9))
    assert len(buckets) == 16
    assert buckets[:3] == (20, 30, 30)
    assert buckets[-1] == 40


def test_only_reasons_from_the_closed_list_are_told(tmp_path: Path):
    said = operations(
        tmp_path,
        uptime=timedelta(hours=5, minutes=50),
        staleness=timedelta(minutes=90),
        problems=["no_space", "patient Ann Example fell ill", "none", "no_space"],
        metrics=None,
    )
    assert [p.value for p in said.problems] == ["no_space"]
    assert (said.uptime_hours, said.staleness_hours, said.latency_buckets) == (5, 1, ())
    assert 0 <= said.disk_free_percent <= 100


def test_operations_leave_by_the_door_and_stay_where_the_site_is_sealed(tmp_path: Path):
    said = operations(tmp_path, uptime=timedelta(), staleness=timedelta(), problems=(), metrics=page(10))
    transport = FakeTransport()
    assert outbox(tmp_path / "open", transport).offer(said)
    assert [kind for kind, _ in transport.sent] == ["ops"]
    assert not outbox(tmp_path / "shut", transport, "sovereignty: sealed\nallow: [{kind: ops}]").offer(said)
    assert len(transport.sent) == 1
    assert EgressRecord.max_bytes > len(said.json)


def test_a_server_that_is_away_has_no_latency(tmp_path: Path):
    assert read_metrics(tmp_path / "server.sock") is None

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from spoke_agent.data.crypto import load_site_key
from spoke_agent.data.rows import Purpose
from spoke_agent.data.store import DataStore, RowBatch
from spoke_agent.drift.monitor import DriftMonitor, DriftTimes, WatchedModel
from spoke_agent.outbox.outbox import Outbox
from sync.core.clock import ManualClock
from sync.core.types import SpokeId
from sync.protocol.egress import DriftHist, DriftVerdict, EgressRecord
from tests.samples.tabular import INDEX, MODEL, VERSION, profile, scores, table

POLICY = "allow: [{kind: drift_verdict}, {kind: drift_hist}, {kind: rff_mean}]\n"


class Site:
    """A data store, an outbox and a monitor over a tabular model."""

    def __init__(self, home: Path, policy: str = POLICY) -> None:
        home.mkdir(exist_ok=True)
        (home / "egress.yaml").write_text(policy)
        self.clock, self.sent = ManualClock(), list[EgressRecord]()
        self.data = DataStore(home / "data.db", load_site_key(home), now=lambda: self.clock.now().timestamp())
        self.outbox = Outbox(home, SpokeId("dubai"), "ae-pdpl", clock=self.clock, send=self._send, seal=lambda r: r.canonical())
        self.home, self.rng = home, np.random.default_rng(7)
        self.monitor = self.started()

    def started(self) -> DriftMonitor:
        watched = [WatchedModel(MODEL, VERSION, INDEX)]
        return DriftMonitor(
            self.home / "drift",
            self.data,
            self.outbox,
            watched=lambda: watched,
            profile=lambda index: profile() if index == INDEX else None,
            clock=self.clock,
            times=DriftTimes(window=timedelta(minutes=15), tell_every=timedelta(hours=1)),
        )

    def serve(self, rows: int, drift: str = "none", purpose: Purpose = "serving") -> None:
        x = table(rows, self.rng, drift)
        times = np.full(rows, self.clock.now().timestamp())
        batch = RowBatch(MODEL, VERSION, INDEX, [""] * rows, times, {"x": x}, {"y": scores(x, self.rng)}, purpose=purpose)
        self.data.append(batch)
        self.clock.advance(60)

    def pass_time(self) -> None:
        self.clock.advance(15 * 60)

    def _send(self, kind: str, envelope: bytes) -> None:
        record = EgressRecord.parse(envelope)
        assert record.body.kind == kind
        self.sent.append(record)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "home")


def verdicts(site: Site) -> list[DriftVerdict]:
    return [r.body for r in site.sent if isinstance(r.body, DriftVerdict)]


def test_a_site_like_the_reference_says_so_once_an_hour(site: Site):
    for _ in range(5):
        site.serve(300)
        site.monitor.tick()
        site.pass_time()
    assert [v.level for v in verdicts(site)] == ["quiet", "quiet"]


def test_fewer_rows_than_the_floor_say_nothing(site: Site):
    site.serve(199)
    assert site.monitor.tick() == []
    assert site.sent == []


def test_drift_is_told_in_the_window_where_it_starts(site: Site):
    site.serve(300)
    site.monitor.tick()
    site.pass_time()
    site.serve(300, "shift")
    ((model, verdict),) = site.monitor.tick()
    assert model == MODEL
    assert verdict.level == "alarm"
    assert [v.level for v in verdicts(site)] == ["quiet", "alarm"]
    assert verdicts(site)[-1].features[0].feature == 0
    assert verdicts(site)[-1].features[0].direction == "up"


def test_rows_that_people_bring_for_a_fit_are_no_traffic(site: Site):
    site.serve(300)
    site.monitor.tick()
    site.pass_time()
    site.serve(300, "shift", purpose="tuning")
    assert site.monitor.tick() == []
    site.serve(300)
    ((_, verdict),) = site.monitor.tick()
    assert (verdict.level, verdict.rows) == ("quiet", 200)


def test_two_tests_are_at_least_a_window_apart(site: Site):
    site.serve(300)
    assert site.monitor.tick()
    site.serve(300)
    assert not site.monitor.tick()
    site.pass_time()
    assert site.monitor.tick()


def test_no_row_is_tested_twice_not_even_after_a_restart(site: Site):
    site.serve(300)
    site.monitor.tick()
    site.pass_time()
    assert not site.started().tick()


def test_histograms_leave_once_enough_rows_came_and_never_for_the_same_rows(site: Site):
    for _ in range(9):
        site.serve(500)
        site.monitor.tick()
        site.pass_time()
    hists = [r.body for r in site.sent if isinstance(r.body, DriftHist)]
    assert len(hists) == 2
    totals = [sum(c for c in f.counts if c > 0) for h in hists for f in h.features]
    assert all(1900 <= total <= 2100 for total in totals)
    assert all(c in (0, -1) or c >= 10 for h in hists for f in h.features for c in f.counts)


def test_the_early_sums_survive_a_restart(site: Site):
    for _ in range(4):
        site.serve(500)
        site.monitor = site.started()
        site.monitor.tick()
        site.pass_time()
    assert sum(isinstance(r.body, DriftHist) for r in site.sent) == 1


def test_a_new_version_starts_afresh(site: Site, tmp_path: Path):
    site.serve(300, "shift")
    site.monitor.tick()
    before = site.monitor.state(MODEL)
    assert before is not None
    assert before.detector.level == "alarm"
    state = before.replace(index="sha256:" + "cd" * 32)
    from spoke_agent.drift.state import write_state

    write_state(site.home / "drift" / f"{MODEL}.json", state)
    site.pass_time()
    site.serve(300)
    site.monitor.tick()
    after = site.monitor.state(MODEL)
    assert after is not None
    assert after.index == INDEX
    assert after.detector.level != "alarm"


def test_a_clock_that_jumps_back_does_not_stop_the_watch(site: Site):
    site.serve(300)
    site.monitor.tick()
    site.clock.set(site.clock.now() - timedelta(days=400))
    site.serve(300)
    assert site.monitor.tick()


def test_a_damaged_state_file_starts_the_watch_afresh(site: Site):
    site.serve(300)
    site.monitor.tick()
    (site.home / "drift" / f"{MODEL}.json").write_bytes(b"{broken")
    site.pass_time()
    site.serve(300)
    assert site.monitor.tick()

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spoke_agent.outbox.errors import LogBroken
from spoke_agent.outbox.explain import REASONS, line
from spoke_agent.outbox.outbox import About, Outbox
from spoke_agent.outbox.policy import EgressRule
from sync.bus.bus import BusDown
from sync.core.clock import ManualClock
from sync.core.types import Regime, SpokeId
from sync.protocol.egress import DriftVerdict, EgressRecord, Ops
from sync.protocol.messages import EgressReceipt
from sync.trust.dsse import seal, unseal
from sync.trust.keys import device_signer
from tests.samples.tabular import INDEX, MODEL, VERSION, profile

DIGEST = "sha256:" + "ab" * 32
START = datetime(2026, 1, 1, 8, 3, 21, tzinfo=UTC)
VERDICT = DriftVerdict(edges=DIGEST, level="alarm", evidence=4, budget=100, p=6, joint=3, windows=1, rows=200)
ABOUT = About(MODEL, VERSION, INDEX, START, START + timedelta(minutes=7), 250)
ABOUT_MANY = About(MODEL, VERSION, INDEX, START, START + timedelta(hours=1), 5000)
OPS = Ops(version=(0, 1, 0), disk_free_percent=40, memory_free_percent=30, uptime_hours=5)


class FakeTransport:
    """A bus that can be cut."""

    def __init__(self) -> None:
        self.up, self.sent = True, list[tuple[str, bytes]]()

    def __call__(self, kind: str, envelope: bytes) -> None:
        if not self.up:
            raise BusDown("cut")
        self.sent.append((kind, envelope))


def outbox(
    home: Path, transport: FakeTransport | None = None, policy: str | None = None, regime: Regime = "ae-pdpl", signer=None
) -> Outbox:  # type: ignore[no-untyped-def]
    home.mkdir(exist_ok=True)
    if policy is not None:
        (home / "egress.yaml").write_text(policy)
    signed = signer or device_signer()
    return Outbox(home, SpokeId("dubai"), regime, clock=ManualClock(), send=transport, seal=lambda r: seal(r, signed))


def whys(box: Outbox) -> list[EgressRule]:
    return [logged.entry.why for logged in box.log.entries()]


def test_an_allowed_record_leaves_signed_and_coarse(tmp_path: Path):
    transport, signer = FakeTransport(), device_signer()
    assert outbox(tmp_path, transport, signer=signer).offer(VERDICT, ABOUT)
    ((kind, envelope),) = transport.sent
    record = unseal(envelope, [signer.public_key], EgressRecord)
    assert kind == "drift_verdict"
    assert record.body == VERDICT
    assert (record.start.minute, record.end.minute) == (0, 15)


def test_what_is_not_allowed_stays_and_is_logged(tmp_path: Path):
    transport = FakeTransport()
    box = outbox(tmp_path, transport, "allow: [{kind: ops}]")
    assert not box.offer(VERDICT, ABOUT)
    assert transport.sent == []
    assert whys(box) == [EgressRule.NOT_IN_SITE_POLICY]
    assert "does not list" in line(next(box.log.entries()))


def test_a_broken_policy_closes_the_door(tmp_path: Path):
    transport = FakeTransport()
    box = outbox(tmp_path, transport, "allow: [{kind: everything}]")
    assert not box.offer(OPS)
    assert transport.sent == []
    assert whys(box) == [EgressRule.POLICY_UNREADABLE]


def test_the_switch_holds_for_what_already_waits(tmp_path: Path):
    transport = FakeTransport()
    box = outbox(tmp_path, transport)
    transport.up = False
    assert box.offer(VERDICT, ABOUT)
    (tmp_path / "egress.yaml").write_text("sovereignty: sealed\nallow: [{kind: drift_verdict}]")
    transport.up = True
    assert box.flush() == 0
    assert box.waiting() == []
    assert transport.sent == []
    (tmp_path / "egress.yaml").write_text("allow: [{kind: drift_verdict}]")
    assert box.flush() == 1


def test_nothing_is_lost_while_the_bus_is_down_or_the_spoke_restarts(tmp_path: Path):
    transport = FakeTransport()
    transport.up = False
    box = outbox(tmp_path, transport)
    assert box.offer(OPS)
    assert box.offer(VERDICT, ABOUT)
    box.close()
    transport.up = True
    again = outbox(tmp_path, transport)
    assert again.flush() == 2
    assert again.flush() == 0
    assert [kind for kind, _ in transport.sent] == ["ops", "drift_verdict"]


def test_without_a_bus_messages_wait_for_the_receipts(tmp_path: Path):
    box = outbox(tmp_path, None)
    box.offer(OPS)
    assert [kind for kind, _ in box.waiting()] == ["ops"]
    box.mark_carried()
    assert box.waiting() == []
    number, digest = box.log.head()
    assert box.log.links(10) == (f"{number} {digest}",)


def test_what_came_after_the_receipts_were_written_waits_for_the_next(tmp_path: Path):
    box, agent = outbox(tmp_path, None), outbox(tmp_path, None)
    box.offer(OPS)
    carried = box.waiting()
    agent.offer(VERDICT, ABOUT)
    box.mark_carried()
    assert len(carried) == 1
    assert [kind for kind, _ in box.waiting()] == ["drift_verdict"]


def test_receipts_of_a_sealed_site_take_nothing_and_nothing_counts_as_carried(tmp_path: Path):
    box = outbox(tmp_path, None)
    box.offer(OPS)
    (tmp_path / "egress.yaml").write_text("sovereignty: sealed\nallow: [{kind: ops}]")
    assert box.waiting() == []
    box.mark_carried()
    (tmp_path / "egress.yaml").unlink()
    assert [kind for kind, _ in box.waiting()] == ["ops"]


def test_without_a_key_nothing_leaves(tmp_path: Path):
    box = Outbox(tmp_path, SpokeId("dubai"), "gdpr", clock=ManualClock(), send=FakeTransport())
    assert not box.offer(OPS)
    assert whys(box) == [EgressRule.NOT_SIGNED]


def test_records_form_a_chain_that_the_hub_can_check(tmp_path: Path):
    box = outbox(tmp_path, FakeTransport())
    box.offer(OPS)
    box.offer(VERDICT, About(MODEL, VERSION, INDEX, START, START, 10))  # refused: too few rows
    box.offer(VERDICT, ABOUT)
    first, second = [logged.record for logged in box.log.entries() if logged.record]
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.previous is None
    assert second.previous == first.digest
    totals = box.log.verify()
    assert (totals.entries, totals.left, totals.refused) == (3, 2, 1)


@pytest.mark.parametrize(
    "crime",
    [
        "DELETE FROM log WHERE sequence = 2",
        "UPDATE log SET entry = replace(entry, 'too_few_rows', 'allowed') WHERE sequence = 2",
        "UPDATE log SET record = replace(record, 'alarm', 'quiet') WHERE sequence = 3",
        "UPDATE log SET record = NULL WHERE sequence = 3",
        "DELETE FROM log WHERE sequence = 1",
    ],
)
def test_a_log_that_was_changed_does_not_verify(tmp_path: Path, crime: str):
    box = outbox(tmp_path, FakeTransport())
    box.offer(OPS)
    box.offer(VERDICT, About(MODEL, VERSION, INDEX, START, START, 10))
    box.offer(VERDICT, ABOUT)
    box.log._connection.execute(crime)
    with pytest.raises(LogBroken):
        box.log.verify()


def test_no_row_is_counted_in_two_histograms(tmp_path: Path):
    box = outbox(tmp_path, FakeTransport(), "allow: [{kind: drift_hist}]")
    counts = [[50 * int(c) for c in f.counts] for f in profile().features]
    one = About(MODEL, VERSION, INDEX, START, START + timedelta(hours=1), 5000)
    overlapping = About(MODEL, VERSION, INDEX, START + timedelta(minutes=59), START + timedelta(hours=2), 5000)
    after = About(MODEL, VERSION, INDEX, START + timedelta(hours=1), START + timedelta(hours=2), 5000)
    assert box.offer_counts(profile(), counts, one)
    assert not box.offer_counts(profile(), counts, overlapping)
    assert box.offer_counts(profile(), counts, after)
    assert whys(box) == [EgressRule.ALLOWED, EgressRule.WINDOW_OVERLAPS, EgressRule.ALLOWED]


def test_only_the_features_that_the_site_lists_are_counted(tmp_path: Path):
    transport = FakeTransport()
    box = outbox(tmp_path, transport, "allow: [{kind: drift_hist, features: [c1, c9]}]")
    counts = [[int(c) for c in f.counts] for f in profile().features]
    assert box.offer_counts(profile(), counts, About(MODEL, VERSION, INDEX, START, START, 5000))
    (logged,) = box.log.entries()
    assert logged.record is not None
    assert [f.feature for f in logged.record.body.features] == [1, 9]  # type: ignore[union-attr]


def test_noise_spends_a_ledger_that_runs_out_and_survives_a_restart(tmp_path: Path):
    policy = "epsilon_per_day: 0.5\nepsilon_per_30_days: 0.9\nallow: [{kind: drift_hist, features: [c1], protect: [dp]}]"
    counts = [[int(c) for c in f.counts] for f in profile().features]
    clock = ManualClock()
    found = []
    for day in range(4):
        box = Outbox(tmp_path, SpokeId("dubai"), "ae-pdpl", clock=clock, send=FakeTransport(), seal=lambda r: r.canonical())
        (tmp_path / "egress.yaml").write_text(policy)
        start = START + timedelta(days=day)
        for hour in range(2):
            at = start + timedelta(hours=hour)
            found.append(box.offer_counts(profile(), counts, About(MODEL, VERSION, INDEX, at, at, 5000)))
        box.close()
        clock.advance(86_401)
    assert found == [True, False, False, False, False, False, False, False]
    log = outbox(tmp_path).log
    assert sum(e.entry.epsilon_milli for e in log.entries()) == 500


def test_a_clock_that_jumps_back_gives_no_budget_back_and_verdicts_still_leave(tmp_path: Path):
    policy = "epsilon_per_day: 0.5\nepsilon_per_30_days: 0.5\nallow: [{kind: drift_hist, protect: [dp]}, {kind: drift_verdict}]"
    (tmp_path / "egress.yaml").write_text(policy)
    counts = [[int(c) for c in f.counts] for f in profile().features]
    clock = ManualClock(START + timedelta(days=400))
    box = Outbox(tmp_path, SpokeId("dubai"), "ae-pdpl", clock=clock, send=FakeTransport(), seal=lambda r: r.canonical())
    assert box.offer_counts(profile(), counts, ABOUT_MANY)
    clock.set(START)
    later = replace(ABOUT_MANY, start=ABOUT_MANY.end, end=ABOUT_MANY.end + timedelta(hours=1))
    assert not box.offer_counts(profile(), counts, later)
    assert whys(box)[-1] is EgressRule.LEDGER_EXHAUSTED
    assert box.offer(VERDICT, ABOUT)
    assert box.log.verify().left == 2


def test_every_rule_has_words():
    assert set(REASONS) == set(EgressRule)


def receipt(box: Outbox, sequence: int, record: str | None = None, day: int = 1) -> None:
    """The hub's word on one record of the log (as it stands there, unless another is given)."""
    digests = [e.record.digest for e in box.log.entries() if e.record]
    given = EgressReceipt(
        site="dubai",
        spoke="main",
        device=DIGEST,
        sequence=sequence,
        record=record or digests[sequence - 1],
        time=datetime(2026, 1, day, 12, tzinfo=UTC),
    )
    box.log.keep_receipt(given, given.canonical())


def test_a_log_that_was_cut_off_behind_a_receipt_of_the_hub_does_not_verify(tmp_path: Path):
    box = outbox(tmp_path, FakeTransport())
    for _ in range(3):
        box.offer(OPS)
    receipt(box, 1, day=1)
    receipt(box, 3, day=2)
    receipt(box, 2, day=2)  # it came late: the newer one of that day stays
    assert box.log.verify().receipted == 3
    box.log._connection.execute("DELETE FROM log WHERE sequence = 3")
    with pytest.raises(LogBroken, match="the hub has record 3"):
        box.log.verify()


def test_a_record_that_is_not_the_one_the_hub_has_does_not_verify(tmp_path: Path):
    box = outbox(tmp_path, FakeTransport())
    box.offer(OPS)
    receipt(box, 1, DIGEST)
    with pytest.raises(LogBroken, match="record 1 is not the one"):
        box.log.verify()

"""A site's own hours and budget, through the nights when clocks change."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.core.clock import ManualClock
from sync.core.types import Reason
from sync.transfer.limits import BudgetExhausted, DailyBudget, Hours, HoursMalformed, LocalHours, together
from sync.transfer.rate_limit import TokenBucket

BERLIN, DUBAI = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Dubai")


def local(text: str, zone: ZoneInfo = BERLIN) -> ManualClock:
    return ManualClock(datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC))


@pytest.mark.parametrize(
    ("hours", "now", "wait_h"),
    [
        ("mon-fri 22:00-06:00", "2026-11-20 23:30", 0),  # a Friday night
        ("mon-fri 22:00-06:00", "2026-11-21 05:59", 0),  # and its Saturday morning
        ("mon-fri 22:00-06:00", "2026-11-21 06:00", 64),  # until Monday night
        ("mon-fri 22:00-06:00", "2026-11-23 05:00", 17),  # Sunday night does not count
        ("sat,sun 00:00-24:00", "2026-11-22 23:59", 0),
        ("sat,sun 00:00-24:00", "2026-11-23 00:00", 5 * 24),
        ("fri-mon 12:00-13:00", "2026-11-24 12:00", 72),
        ("mon-sun 08:00-09:00", "2026-11-21 07:00", 1),
    ],
)
def test_hours_are_those_of_the_wall_clock(hours: str, now: str, wait_h: float) -> None:
    assert LocalHours([Hours.parse(hours)], BERLIN, local(now)).wait() == wait_h * 3600


def test_an_hour_that_is_skipped_in_spring_does_not_come_and_the_next_day_it_does() -> None:
    hours = LocalHours([Hours.parse("mon-sun 02:00-03:00")], BERLIN, local("2026-03-29 01:00"))
    assert hours.wait() == 24 * 3600, "23 hours of that day, and the hour until two"


def test_an_hour_that_comes_twice_in_autumn_counts_twice() -> None:
    clock = local("2026-10-25 01:30")
    hours = LocalHours([Hours.parse("mon-sun 02:00-03:00")], BERLIN, clock)
    assert hours.wait() == 1800
    clock.advance(1800)
    for _ in range(4):
        assert hours.wait() == 0
        clock.advance(1800)
    assert hours.wait() == 23 * 3600


def test_two_zones_have_their_own_nights() -> None:
    clock = ManualClock(datetime(2026, 11, 21, 22, 30, tzinfo=UTC))
    night = [Hours.parse("mon-sun 01:00-05:00")]
    assert LocalHours(night, DUBAI, clock).wait() == 0
    assert LocalHours(night, BERLIN, clock).wait() == 1.5 * 3600


@settings(max_examples=200)
@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
    st.integers(0, 23),
    st.integers(0, 23),
    st.sampled_from(["mon", "sat,sun", "mon-sun", "fri-tue"]),
    st.sampled_from([BERLIN, DUBAI, ZoneInfo("America/St_Johns"), ZoneInfo("Australia/Lord_Howe")]),
)
def test_after_the_wait_it_is_open(now: datetime, begin: int, end: int, days: str, zone: ZoneInfo) -> None:
    clock = ManualClock(now.replace(tzinfo=UTC))
    hours = LocalHours([Hours.parse(f"{days} {begin:02}:00-{end:02}:30")], zone, clock)
    wait = hours.wait()
    assert 0 <= wait <= 8 * 86_400
    clock.advance(wait)
    assert hours.wait() == 0


@pytest.mark.parametrize(
    "text", ["", "mon", "22:00-06:00", "mon 22-6", "funday 01:00-02:00", "mon 25:00-26:00", "mon 1:00 - 2:00"]
)
def test_hours_that_cannot_be_read_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(HoursMalformed) as refused:
        Hours.parse(text)
    assert "mon-fri 22:00-06:00" in refused.value.hint


def test_no_hours_at_all_are_refused() -> None:
    with pytest.raises(HoursMalformed):
        LocalHours([], BERLIN, ManualClock())


def test_a_budget_lasts_until_midnight_of_the_site(tmp_path: Path) -> None:
    clock = local("2026-11-21 20:00")
    budget = DailyBudget(1000, BERLIN, clock, tmp_path / "budget.json")
    budget.spend(999)
    assert budget.pause() == 0
    budget.spend(999)
    assert budget.pause() == 4 * 3600
    clock.advance(4 * 3600)
    assert budget.pause() == 0


def test_a_budget_that_is_used_up_ends_the_transfer_with_its_reason(tmp_path: Path) -> None:
    pace = together(DailyBudget(1000, BERLIN, local("2026-11-21 20:00"), tmp_path / "budget.json"))
    assert pace.wait() == 0
    pace.spend(1000)
    with pytest.raises(BudgetExhausted, match=r"4\.0 h") as e:
        pace.wait()
    assert e.value.reason is Reason.BUDGET_EXHAUSTED


def test_a_budget_survives_a_restart_and_a_clock_that_runs_back(tmp_path: Path) -> None:
    clock = local("2026-11-21 20:00")
    DailyBudget(1000, BERLIN, clock, tmp_path / "budget.json").spend(1000)
    again = DailyBudget(1000, BERLIN, clock, tmp_path / "budget.json")
    assert again.pause() > 0
    clock.set(clock.now() - timedelta(days=3))
    assert again.pause() > 0
    (tmp_path / "budget.json").write_text("{damaged")
    assert DailyBudget(1000, BERLIN, clock, tmp_path / "budget.json").pause() == 0


def test_a_bucket_pays_its_debt_in_time() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, burst=50, clock=clock)
    bucket.spend(250)
    assert bucket.wait() == 2.0
    clock.advance(2.0)
    assert bucket.wait() == 0
    clock.advance(100)
    bucket.spend(50)
    assert bucket.wait() == 0


def test_manners_together_wait_for_the_strictest(tmp_path: Path) -> None:
    clock = local("2026-11-21 20:00")
    hours = LocalHours([Hours.parse("mon-sun 22:00-06:00")], BERLIN, clock)
    both = together(hours, TokenBucket(1.0, clock=clock))
    assert both.wait() == 2 * 3600
    both.spend(4 * 3600 + 1)
    assert both.wait() == 4 * 3600

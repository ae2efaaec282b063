"""When a site allows transfers: hours of the day in its time zone, and a number of bytes a day.

Each is a `RateLimit`, and `together` combines several; the receiver stops asking while any of them says to wait.
"""

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from model_formats.core.errors import OperatorError
from model_formats.core.files import atomic_write
from sync.core.clock import Clock
from sync.core.types import Reason
from sync.transfer.errors import TransferFailed
from sync.transfer.rate_limit import RateLimit, Unlimited

__all__ = ["BudgetExhausted", "DailyBudget", "Hours", "HoursMalformed", "LocalHours", "together"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SAVE_EVERY_BYTES = 8 << 20


class HoursMalformed(OperatorError):
    """A line of transfer hours that cannot be read."""

    code = "hours_malformed"
    hint = "Write hours as DAYS HH:MM-HH:MM, for example `mon-fri 22:00-06:00` or `sat,sun 00:00-24:00`."


class BudgetExhausted(TransferFailed):
    """As many bytes came today as the site allows."""

    code = "budget_exhausted"
    hint = "It goes on by itself tomorrow; `bytes_per_day` in spoke.toml allows more, and a sideload counts nothing."
    reason = Reason.BUDGET_EXHAUSTED


@dataclass(frozen=True, slots=True)
class Hours:
    """Wall-clock hours on some days. `end` at or before `begin` runs into the next day; the days are those of the beginning."""

    days: frozenset[int]
    begin: time
    end: time
    whole_day: bool = False

    @classmethod
    def parse(cls, text: str) -> "Hours":
        """Read `mon-fri 22:00-06:00`. Raises HoursMalformed."""
        try:
            days, span = text.lower().split()
            begin, end = span.split("-")
            whole = begin == "00:00" and end == "24:00"
            return cls(_days(days), time.fromisoformat(begin), time() if end == "24:00" else time.fromisoformat(end), whole)
        except ValueError as e:
            raise HoursMalformed(f"{text!r} are not transfer hours") from e

    def covers(self, local: datetime) -> bool:
        """Whether a local time is within."""
        clock, today, yesterday = local.time(), local.weekday(), (local.weekday() - 1) % 7
        if self.whole_day:
            return today in self.days
        if self.begin < self.end:
            return today in self.days and self.begin <= clock < self.end
        return (today in self.days and clock >= self.begin) or (yesterday in self.days and clock < self.end)


class LocalHours:
    """Transfers only within some hours of the site's own day. In the night when clocks go back, an hour that comes twice counts
    twice; an hour that is skipped in spring does not come.
    """

    def __init__(self, hours: Sequence[Hours], zone: ZoneInfo, clock: Clock) -> None:
        if not hours:
            raise HoursMalformed("no transfer hours at all would mean never", hint="Leave the setting out to allow all hours.")
        self._hours, self._zone, self._clock = tuple(hours), zone, clock

    def wait(self) -> float:
        """Seconds until the next hour that is allowed; 0 within one."""
        now = self._clock.now()
        return 0.0 if self._open(now) else (self._next(now) - now).total_seconds()

    def spend(self, size: int) -> None:
        """Counts nothing."""

    def _open(self, moment: datetime) -> bool:
        local = moment.astimezone(self._zone)
        return any(hours.covers(local) for hours in self._hours)

    def _next(self, now: datetime) -> datetime:
        today = now.astimezone(self._zone).date()
        starts = (
            datetime.combine(today + timedelta(days=day), hours.begin, self._zone).replace(fold=fold).astimezone(UTC)
            for day in range(15)
            for hours in self._hours
            for fold in (0, 1)
        )
        return min(start for start in starts if start > now and self._open(start))


class DailyBudget:
    """So many bytes in a day of the site's calendar, also across restarts (to within 8 MiB).

    `wait` raises BudgetExhausted when all is used up: what has arrived is kept, and the line and the memory are given back until
    midnight. `pause` only looks.
    """

    def __init__(self, limit: int, zone: ZoneInfo, clock: Clock, path: Path) -> None:
        self._limit, self._zone, self._clock, self._path = limit, zone, clock, path
        self._day, self._spent = self._read()
        self._saved = self._spent

    def wait(self) -> float:
        """0, or BudgetExhausted."""
        seconds = self.pause()
        if seconds > 0:
            raise BudgetExhausted(
                f"{self._spent} bytes came today, {self._limit} are allowed; it goes on in {seconds / 3600:.1f} h"
            )
        return 0.0

    def pause(self) -> float:
        """Seconds until midnight when the budget is used up, else 0."""
        self._turn_page()
        if self._spent < self._limit:
            return 0.0
        now = self._clock.now()
        tomorrow = now.astimezone(self._zone).date() + timedelta(days=1)
        return max(1.0, (datetime.combine(tomorrow, time(), self._zone).astimezone(UTC) - now).total_seconds())

    def spend(self, size: int) -> None:
        """Count bytes."""
        self._turn_page()
        self._spent += size
        if self._spent - self._saved >= _SAVE_EVERY_BYTES or self._spent >= self._limit > self._saved:
            self._save()

    def _turn_page(self) -> None:
        today = self._clock.now().astimezone(self._zone).date().isoformat()
        if today > self._day:  # a clock that runs backwards gives no second budget
            self._day, self._spent = today, 0
            self._save()

    def _save(self) -> None:
        atomic_write(self._path, json.dumps({"day": self._day, "bytes": self._spent}).encode())
        self._saved = self._spent

    def _read(self) -> tuple[str, int]:
        try:
            kept = json.loads(self._path.read_bytes())
            return str(kept["day"]), int(kept["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", 0


class _Together:
    def __init__(self, paces: Iterable[RateLimit]) -> None:
        self._paces, self._lock = tuple(paces), threading.Lock()

    def wait(self) -> float:
        with self._lock:
            return max((pace.wait() for pace in self._paces), default=0.0)

    def spend(self, size: int) -> None:
        with self._lock:
            for pace in self._paces:
                pace.spend(size)


def together(*paces: RateLimit) -> RateLimit:
    """Waits while any of them does; all of them count. Several transfers may share it."""
    return _Together(paces) if paces else Unlimited()


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        a, b = _DAYS.index(first), _DAYS.index(last or first)
        found |= {day % 7 for day in range(a, b + 1 if b >= a else b + 8)}
    return frozenset(found)

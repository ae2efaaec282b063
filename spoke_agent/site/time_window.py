"""Local hours: whether now is within a window such as `22:00-06:00` in the site's time zone (daylight saving included)."""

from datetime import datetime, time
from zoneinfo import ZoneInfo

__all__ = ["within"]


def within(hours: str | None, zone: str, now: datetime) -> bool:
    """Whether `now` is in the window; always, when there is none. A window may pass midnight; equal ends mean the whole day."""
    if hours is None:
        return True
    start, end = (time.fromisoformat(part) for part in hours.split("-"))
    local = now.astimezone(ZoneInfo(zone)).time()
    if start <= end:
        return start <= local < end or start == end
    return local >= start or local < end

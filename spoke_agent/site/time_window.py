"""The site's own hours, such as `22:00-06:00`: the one place that says whether something may begin now, and when it may."""

from dataclasses import dataclass
from typing import Self
from zoneinfo import ZoneInfo

from spoke_agent.site.settings import SpokeSettings
from sync.core.clock import Clock
from sync.transfer.limits import Hours, LocalHours

__all__ = ["OpeningHours", "SiteHours", "Waits"]


class OpeningHours:
    """One setting of hours in the site's time zone (daylight saving included). Without hours it is always open.

    A window may pass midnight; equal ends mean the whole day. It is a `RateLimit` too, so that the gate before a transfer and the
    one inside it are the same object on the same clock.
    """

    def __init__(self, hours: str | None, zone: str, clock: Clock) -> None:
        self.hours = hours
        self._gate = LocalHours([Hours.parse(f"mon-sun {hours}")], ZoneInfo(zone), clock) if hours else None

    def wait(self) -> float:
        """Seconds until it opens; 0 while it is open."""
        return self._gate.wait() if self._gate is not None else 0.0

    def spend(self, size: int) -> None:
        """Counts nothing."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds until the site's hours begin; 0 within them."""

    download_s: float = 0.0
    switch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SiteHours:
    """When this site lets packages come, and when it lets a new version begin to answer."""

    download: OpeningHours
    switch: OpeningHours

    @classmethod
    def of(cls, settings: SpokeSettings, clock: Clock) -> Self:
        """Both settings on one clock: trusted time, since a machine's own clock may be hours off."""
        zone = settings.timezone
        return cls(OpeningHours(settings.download_hours, zone, clock), OpeningHours(settings.switch_hours, zone, clock))

    def waits(self) -> Waits:
        """How long to wait for each from now."""
        return Waits(self.download.wait(), self.switch.wait())

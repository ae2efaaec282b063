"""What an update works with: the site it runs at, and the parts outside the update machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.time_window import SiteHours
from spoke_agent.update.admission import Capacity
from spoke_agent.update.interfaces import Labels, ServingProcess, Transport, Trust
from spoke_agent.update.update import Timer
from sync.core.types import Regime
from sync.store import Store

__all__ = ["UpdatePorts", "UpdateSite"]


@dataclass(frozen=True, slots=True)
class UpdateSite:
    """Facts about the site and its machine."""

    zone: str
    regime: Regime
    settings: SpokeSettings
    hours: SiteHours
    slots: Path
    """The file `slots.json`."""
    capacity: Callable[[], Capacity]
    timer: Callable[[], Timer]


@dataclass(frozen=True, slots=True)
class UpdatePorts:
    """The parts outside."""

    store: Store
    trust: Trust
    transport: Transport
    server: ServingProcess
    labels: Labels

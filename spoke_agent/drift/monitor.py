"""The watch over one spoke's models: reads new rows, tests them, keeps the detector's state, tells the outbox."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from model_formats.profile import ReferenceProfile
from spoke_agent.data.store import DataStore
from spoke_agent.outbox.outbox import Outbox
from sync.clock import Clock

__all__ = ["DriftMonitor", "Watched"]


@dataclass(frozen=True, slots=True)
class Watched:
    """One model version to watch: the champion, as slots.json names it."""

    model: str
    version: int
    index: str


class DriftMonitor:
    """Call `tick()` from the agent's loop; it returns at once when there is nothing to do."""

    def __init__(
        self,
        folder: Path,
        data: DataStore,
        outbox: Outbox,
        *,
        watched: Callable[[], Iterable[Watched]],
        profile: Callable[[str], ReferenceProfile | None],
        clock: Clock,
        window: timedelta = timedelta(minutes=15),
        budget: timedelta = timedelta(days=91),
    ) -> None:
        """`folder` keeps the state (home/drift); `profile` gives the reference of an index digest, None where there is none.

        `window` is the shortest time between two tests of a model, `budget` the shortest mean time between two false alarms.
        """

    def tick(self) -> None:
        """Test every watched model that has enough new rows; at most one window a model and call."""

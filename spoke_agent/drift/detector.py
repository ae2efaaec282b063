"""From windows to an alarm: the Shiryaev-Roberts e-detector, one number of state.

Each window's p becomes an e-value, e = 0.3 p^-0.7 (its mean is at most 1 when nothing changed), and R grows by R <- (1 + R) e. An
alarm at R >= budget comes falsely at most once in `budget` windows on average, whatever the windows' sizes
(Shin, Ramdas and Rinaldo, "E-detectors", 2023). So a budget has a meaning: "one false alarm a quarter".
"""

from datetime import timedelta
from typing import Annotated

from msgspec import Meta

from model_formats.core.document import Value
from sync.protocol.egress import Level

__all__ = ["Detector", "budget_windows"]

_KAPPA = 0.3
_LEAST_P = 1e-12
_OVER = 100.0
"""R is held at this many budgets, so that a detector comes to rest again after a fault is mended."""


def budget_windows(between_alarms: timedelta, window: timedelta) -> int:
    """How many windows fit between two false alarms."""
    return max(10, min(10_000_000, int(between_alarms / window)))


class Detector(Value):
    """The state between windows."""

    budget: int
    statistic: float = 0.0
    level: Level = "quiet"
    windows: Annotated[int, Meta(ge=0)] = 0
    """Windows since it was last at rest (R below 1)."""

    def after(self, p: float) -> "Detector":
        """The state after one more window."""
        e = _KAPPA * max(p, _LEAST_P) ** (_KAPPA - 1)
        # Capped, so that the statistic can come down again within reasonable time once the drift is over.
        statistic = min((1 + self.statistic) * e, _OVER * self.budget)
        windows = self.windows + 1 if statistic >= 1 else 0
        return Detector(budget=self.budget, statistic=statistic, level=self._level(statistic), windows=windows)

    def _level(self, statistic: float) -> Level:
        rest = self.budget**0.5
        if statistic >= self.budget:
            return "alarm"
        if statistic >= rest:
            # Hysteresis: an alarm ends only well below the budget, or it would flicker at the edge.
            return "alarm" if self.level == "alarm" else "watch"
        return "quiet"

"""Which variant of a version serves on which class of CPU, and how fast, as the fleet measures it.

Each spoke measures on its own machine; the median over the spokes of a class says which variant is best there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from sqlalchemy import Connection

from hub.store.spokes import list_spokes
from model_formats.core.cpu_class import CpuClass
from model_formats.core.runtime import Engine, Mode
from sync.protocol.messages import Serving

__all__ = ["OnClass", "by_class", "on_classes"]


@dataclass(frozen=True, slots=True)
class OnClass:
    """One way of serving a version on one class of CPU."""

    cpu_class: CpuClass
    variant: str
    engine: Engine
    mode: Mode
    spokes: int
    latency_us: float | None
    """Median over the spokes, for one row."""
    row_us: float | None
    """Median over the spokes, for a row in a batch of 32."""
    best: bool
    """The fastest of its class, where more than one way was measured there."""


def on_classes(connection: Connection, index: str) -> list[OnClass]:
    """What the fleet says of a version by its newest signed reports."""
    return by_class(s for spoke in list_spokes(connection) for s in spoke.serving if s.index == index)


def by_class(serving: Iterable[Serving]) -> list[OnClass]:
    """The same, pure. Spokes that do not say their class are left out."""
    ways: dict[tuple[CpuClass, str, Engine, Mode], list[Serving]] = {}
    for one in serving:
        if one.cpu_class is not None and one.mode is not None:
            ways.setdefault((one.cpu_class, one.variant, one.engine, one.mode), []).append(one)
    found = [OnClass(*key, len(told), *_times(told), best=False) for key, told in sorted(ways.items())]
    return [_with_best(one, found) for one in found]


def _with_best(one: OnClass, all_: list[OnClass]) -> OnClass:
    times = [o.row_us for o in all_ if o.cpu_class == one.cpu_class and o.row_us is not None]
    best = len(times) > 1 and one.row_us == min(times)
    return OnClass(one.cpu_class, one.variant, one.engine, one.mode, one.spokes, one.latency_us, one.row_us, best)


def _times(told: list[Serving]) -> tuple[float | None, float | None]:
    return _median(s.latency_us for s in told), _median(s.row_us for s in told)


def _median(times: Iterable[int | None]) -> float | None:
    known = [time for time in times if time is not None]
    return median(known) if known else None

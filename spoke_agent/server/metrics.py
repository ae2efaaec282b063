"""Plain integers while serving; words only when somebody scrapes. Names end in their unit, as Prometheus asks.

Source: Prometheus text exposition format 0.0.4.
"""

import os
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct, field

__all__ = ["Histogram", "ModelCounts", "Page", "VersionCounts", "cpu_seconds", "rss_bytes"]

_BUCKETS: Final = 26
_PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")


class Histogram(Struct):
    """Counts over powers of two; bucket k holds whole values below 2**k. Microseconds here, or rows."""

    counts: list[int] = field(default_factory=lambda: [0] * (_BUCKETS + 1))
    total: int = 0

    def add(self, value: int) -> None:
        """Count one value, 0 or more."""
        place = value.bit_length()
        self.counts[place if place < _BUCKETS else _BUCKETS] += 1
        self.total += value

    @property
    def size(self) -> int:
        """How many values."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The value below which this share lies, linear within its bucket; None while empty."""
        left = self.size * share
        if not left:
            return None
        for place, count in enumerate(self.counts):
            if count >= left:
                low = 2.0 ** (place - 1) if place else 0.0
                return low + (2.0**place - low) * left / count
            left -= count
        return 2.0**_BUCKETS


class VersionCounts(Struct):
    """One loaded version."""

    requests: int = 0
    direct: int = 0
    """Of the requests, those that ran past the queue."""
    rows: int = 0
    errors: int = 0
    queue_us: Histogram = field(default_factory=Histogram)
    """Of each run, how long its longest-waiting request had waited."""
    run_us: Histogram = field(default_factory=Histogram)
    request_us: Histogram = field(default_factory=Histogram)
    batch_rows: Histogram = field(default_factory=Histogram)


class ModelCounts(Struct):
    """One model, whichever version answered."""

    requests: int = 0
    bad_requests: int = 0
    shed: int = 0
    out_of_contract: int = 0
    last_request: float = 0.0
    """Monotonic time."""


class Page:
    """A page of metrics, written family by family."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, object], float]]) -> None:
        """Counters and gauges: one value per set of labels."""
        self._head(name, kind, text)
        self._lines += [f"{name}{_labels(labels)} {value:.15g}" for labels, value in samples]

    def histograms(
        self, name: str, text: str, samples: Iterable[tuple[Mapping[str, object], Histogram]], *, scale: float = 1.0
    ) -> None:
        """Histograms; `scale` turns the counted unit into the named one (1e-6 for microseconds to seconds)."""
        self._head(name, "histogram", text)
        for labels, histogram in samples:
            seen = 0
            for place, count in enumerate(histogram.counts[:_BUCKETS]):
                seen += count
                self._lines.append(f"{name}_bucket{_labels({**labels, 'le': f'{2.0**place * scale:.6g}'})} {seen}")
            size = histogram.size
            self._lines.append(f"{name}_bucket{_labels({**labels, 'le': '+Inf'})} {size}")
            self._lines.append(f"{name}_sum{_labels(labels)} {histogram.total * scale:.15g}")
            self._lines.append(f"{name}_count{_labels(labels)} {size}")

    def render(self) -> bytes:
        """The whole page."""
        return ("\n".join(self._lines) + "\n").encode()

    def _head(self, name: str, kind: str, text: str) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_SIZE


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _labels(labels: Mapping[str, object]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{key}="{_escaped(str(value))}"' for key, value in labels.items())
    return "{" + inside + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

"""Sums over many rows that mean the same at every site: how they are laid out, added up at a site, and read at the hub.

A closed list of statistics. All are whole numbers, and every value has a bound on what one row can change in it, so that noise
can be sized. Columns are those of the signed reference profile; moments are clipped to the range of the signed contract.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model_formats.core.document import Value
from model_formats.core.errors import OperatorError
from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import FeatureContract
from model_formats.statistics.reference_profile import FeatureProfile, ReferenceProfile, count

__all__ = [
    "MAX_VALUES",
    "SCALE",
    "SumLayout",
    "Part",
    "PartTotals",
    "Statistic",
    "SumsInvalid",
    "add_up",
    "lay_out",
    "read_totals",
]

Statistic = Literal["label_counts", "feature_counts", "feature_moments"]
"""Labels by class; counts over the profile's own cells; number, mean and variance of numeric columns."""

SCALE = 1000
"""A clipped value is told in thousandths of its range."""
MAX_VALUES = 8192
"""Longest vector of one question."""


class SumsInvalid(OperatorError):
    """Sums that cannot be made of this model's rows."""

    code = "sums_invalid"
    http = 422
    hint = "Ask for columns of the model's reference profile: numeric ones for moments; label counts need a classifier."


@dataclass(frozen=True, slots=True)
class Part:
    """One column's place in the vector. `position` is its place in the profile, None for labels."""

    name: str
    position: int | None
    start: int
    length: int
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class SumLayout:
    """A vector, part by part. One row changes `touches` of its values, each by at most its bound."""

    statistic: Statistic
    parts: tuple[Part, ...]
    bounds: tuple[int, ...]
    touches: int

    def shares(self, epsilon: float) -> list[float]:
        """Epsilon of each value's discrete Laplace noise (scale 1/share), which together are `epsilon`-DP for one row."""
        return [epsilon / (self.touches * bound) for bound in self.bounds]


def lay_out(
    contract: FeatureContract, profile: ReferenceProfile, statistic: Statistic, features: Sequence[int] = ()
) -> SumLayout:
    """The layout of a statistic over some columns (none given: all inputs). Both ends compute it. Raises SumsInvalid."""
    if statistic == "label_counts":
        classes = len(contract.classes or ()) or contract.outputs[0].shape[-1]
        if contract.task != "classification" or classes < 2 or features:
            raise SumsInvalid("label counts are for classifiers, and of the label alone")
        return SumLayout(statistic, (Part("label", None, 0, classes),), (1,) * classes, 1)
    chosen = features or [i for i, f in enumerate(profile.features) if f.source == "input"]
    if not chosen or sorted(set(chosen)) != list(chosen) or chosen[-1] >= len(profile.features):
        raise SumsInvalid(f"columns must rise, each once, and be among the profile's {len(profile.features)}")
    moments = statistic == "feature_moments"
    parts: list[Part] = []
    for i in chosen:
        feature, start = profile.features[i], parts[-1].start + parts[-1].length if parts else 0
        low, high = _range(contract, feature) if moments else (0.0, 0.0)
        parts.append(Part(feature.id, i, start, 3 if moments else feature.cells, low, high))
    length = parts[-1].start + parts[-1].length
    if length > MAX_VALUES:
        raise SumsInvalid(f"{length} values; {MAX_VALUES} at most. Ask for fewer columns.")
    bounds = (1, SCALE, SCALE) * len(parts) if moments else (1,) * length
    return SumLayout(statistic, tuple(parts), bounds, len(parts) * (3 if moments else 1))


def add_up(layout: SumLayout, profile: ReferenceProfile, table: Array, labels: Array) -> list[int]:
    """A site's exact sums: `table` [n, features] as `profile.columns` gives it, `labels` [n], NaN where there is none."""
    if layout.statistic == "label_counts":
        known = labels[~np.isnan(labels)]
        classes = layout.parts[0].length
        fitting = known[(known >= 0) & (known < classes)].astype(np.int64)
        return [int(c) for c in np.bincount(fitting, minlength=classes)]
    if layout.statistic == "feature_counts":
        counted = count(profile, table)
        return [int(c) for part in layout.parts for c in counted[_position(part)]]
    return [v for part in layout.parts for v in _moments(part, table[:, _position(part)])]


class PartTotals(Value):
    """What the sum over all sites says of one column."""

    name: str
    cells: tuple[int | None, ...] | None = None
    """Counts by class or by the profile's cells; None stands for fewer than the smallest count that is shown."""
    rows: int | None = None
    mean: float | None = None
    variance: float | None = None
    noise: float
    """Standard deviation of the noise in a count (all sites together)."""
    mean_noise: float | None = None
    """About the standard deviation that noise gives the mean, in the column's own unit."""


def read_totals(layout: SumLayout, totals: Sequence[int], *, sites: int, epsilon: float, least: int) -> tuple[PartTotals, ...]:
    """Put the opened sum into words. Counts below `least` are not shown, nor moments of fewer than ten times that."""
    if len(totals) != len(layout.bounds):
        raise SumsInvalid(f"{len(totals)} values where the layout has {len(layout.bounds)}")
    spread = [math.sqrt(sites * _variance_of_noise(share)) for share in layout.shares(epsilon)]
    read = _read_moments if layout.statistic == "feature_moments" else _read_cells
    return tuple(
        read(part, totals[part.start : part.start + part.length], spread[part.start : part.start + part.length], least)
        for part in layout.parts
    )


def _range(contract: FeatureContract, feature: FeatureProfile) -> tuple[float, float]:
    """The contract's range where it states one, else the outermost edges of the profile."""
    if feature.kind != "numeric":
        raise SumsInvalid(f"{feature.id} is not numeric, so it has no moments")
    tensor = next((t for t in contract.inputs if t.name == feature.tensor), None)
    stated = tensor
    if tensor is not None and tensor.columns is not None and feature.summary == "value":
        stated = tensor.columns[feature.index]  # type: ignore[assignment]
    inside = stated is not None and feature.source == "input" and feature.summary in ("value", "mean")
    if inside and stated is not None and stated.low is not None and stated.high is not None:
        low, high = stated.low, stated.high
    else:
        low, high = feature.edges[0], feature.edges[-1]
    if not low < high:
        raise SumsInvalid(f"{feature.id} has no range to clip to")
    return low, high


def _position(part: Part) -> int:
    if part.position is None:
        raise SumsInvalid(f"{part.name} is no column")
    return part.position


def _moments(part: Part, column: Array) -> list[int]:
    present = column[~np.isnan(column)]
    unit = np.clip((present - part.low) / (part.high - part.low), 0.0, 1.0)
    return [len(present), int(np.rint(unit * SCALE).sum()), int(np.rint(unit**2 * SCALE).sum())]


def _read_cells(part: Part, values: Sequence[int], spread: Sequence[float], least: int) -> PartTotals:
    return PartTotals(name=part.name, cells=tuple(v if v >= least else None for v in values), noise=round(spread[0], 3))


def _read_moments(part: Part, values: Sequence[int], spread: Sequence[float], least: int) -> PartTotals:
    rows, total, squares = values
    if rows < 10 * least:
        return PartTotals(name=part.name, noise=round(spread[0], 3))
    span, mean, square = part.high - part.low, total / SCALE / rows, squares / SCALE / rows
    return PartTotals(
        name=part.name,
        rows=rows,
        mean=part.low + span * mean,
        variance=span**2 * max(0.0, square - mean**2),
        noise=round(spread[0], 3),
        mean_noise=span * math.hypot(spread[1] / SCALE, mean * spread[0]) / rows,
    )


def _variance_of_noise(share: float) -> float:
    """Of the discrete Laplace distribution: 2 q / (1 - q)^2 with q = exp(-share)."""
    q = math.exp(-share)
    return 2 * q / math.expm1(-share) ** 2

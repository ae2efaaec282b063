"""The rows of a build: for INT8 calibration, accuracy and the reference profile. They never enter the package."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model_formats.core.array_file import ArraysRefused, read_arrays, write_arrays
from model_formats.core.runtime import Array
from model_formats.core.types import digest_of

__all__ = ["BuildData", "Corruption", "Rows", "read_rows", "write_rows"]

Corruption = tuple[str, Callable[[Mapping[str, Array]], dict[str, Array]]]
"""A family name, and a function that damages inputs the way this family does, at one strength."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs by tensor name, with labels [n] and, for slices of the score, further columns [n] of text."""

    inputs: Mapping[str, Array]
    labels: Array
    columns: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Digest of names, types, shapes and bytes of all of it: an immutable snapshot's name."""
        parts = {**{f"input:{n}": a for n, a in self.inputs.items()}, "labels": self.labels}
        parts |= {f"column:{n}": a for n, a in self.columns.items()}
        return digest_of(b"".join(_bytes(n, parts[n]) for n in sorted(parts)))

    def take(self, chosen: Any) -> "Rows":
        """Some of the rows, by slice, mask or indexes."""
        return Rows(
            {n: a[chosen] for n, a in self.inputs.items()}, self.labels[chosen], {n: a[chosen] for n, a in self.columns.items()}
        )


@dataclass(frozen=True, slots=True)
class BuildData:
    """The data of a build: training rows, held-out rows, and corruptions of inputs (for the accuracy estimate)."""

    train: Rows
    held_out: Rows
    corruptions: Sequence[Corruption] = ()


def _bytes(name: str, array: Array) -> bytes:
    plain = np.ascontiguousarray(array)
    return f"{name}\0{plain.dtype.str}\0{plain.shape}\0".encode() + plain.tobytes()


def write_rows(path: Path, rows: Rows) -> None:
    """Keep rows as `input:<name>`, `labels` and `column:<name>` in a file of arrays."""
    write_arrays(
        path,
        {
            **{f"input:{n}": a for n, a in rows.inputs.items()},
            **{f"column:{n}": a for n, a in rows.columns.items()},
            "labels": rows.labels,
        },
    )


def read_rows(path: Path | str, *, max_bytes: int = 4 << 30) -> Rows:
    """Read what `write_rows` or `numpy.savez` wrote under those names. Raises ArraysRefused."""
    path = Path(path)
    found = read_arrays(path, max_bytes=max_bytes)
    parts: dict[str, dict[str, Array]] = {"input": {}, "column": {}}
    for key, array in found.items():
        kind, _, name = key.partition(":")
        if kind in parts and name:
            parts[kind][name] = array
    if "labels" not in found or not parts["input"] or any(len(a) != len(found["labels"]) for a in parts["input"].values()):
        raise ArraysRefused(f"{path.name}: needs `labels` and at least one `input:<name>`, all with the same number of rows")
    return Rows(parts["input"], found["labels"], parts["column"])

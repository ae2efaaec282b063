"""Rows that a model is built from: calibrated with, measured on, profiled by. They never enter the package themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model_formats.runtimes.base import Array
from model_formats.types import digest_of

__all__ = ["BuildData", "Corruption", "Rows"]

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

    def with_inputs(self, inputs: Mapping[str, Array]) -> "Rows":
        """The same rows with other inputs (turned, blurred, ...)."""
        return Rows(inputs, self.labels, self.columns)


@dataclass(frozen=True, slots=True)
class BuildData:
    """What a build needs: rows the model saw, rows it did not, and how its inputs may go wrong (for the accuracy estimate)."""

    train: Rows
    held_out: Rows
    corruptions: Sequence[Corruption] = ()


def _bytes(name: str, array: Array) -> bytes:
    plain = np.ascontiguousarray(array)
    return f"{name}\0{plain.dtype.str}\0{plain.shape}\0".encode() + plain.tobytes()

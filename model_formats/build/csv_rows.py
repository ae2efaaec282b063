"""Rows from a CSV file: a header, numbers, one column of labels, and columns `slice:<name>` that scores are split by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_formats.core.array_file import ArraysRefused
from model_formats.core.csv_file import read_csv
from model_formats.core.runtime import Array

__all__ = ["Table", "read_table"]

_SLICE = "slice:"


@dataclass(frozen=True, slots=True)
class Table:
    """`values` FP32 [rows, columns] under `columns`, `labels` as text, and further columns [rows] of text."""

    columns: tuple[str, ...]
    values: Array
    labels: Array
    slices: Mapping[str, Array]


def read_table(path: Path, *, label: str = "label", max_bytes: int = 1 << 30) -> Table:
    """Read all of it. Raises ArraysRefused that names the line and the column."""
    by, lines = read_csv(path, ArraysRefused, max_bytes=max_bytes)
    if label not in by:
        hint = "Name the labels' column by --label."
        raise ArraysRefused(f"{path.name}: the header has no column {label!r}; it is {list(by)[:20]}", hint=hint)
    columns = tuple(n for n in by if n != label and not n.startswith(_SLICE))
    values = [_numbers(path, name, by[name], lines) for name in columns]
    if not values or not lines:
        raise ArraysRefused(f"{path.name}: no rows, or no column beside the labels")
    slices = {n.removeprefix(_SLICE): np.array(v) for n, v in by.items() if n.startswith(_SLICE)}
    return Table(columns, np.stack(values, axis=1), np.array(by[label]), slices)


def _numbers(path: Path, name: str, texts: Sequence[str], lines: Sequence[int]) -> Array:
    for number, text in zip(lines, texts, strict=True):
        try:
            float(text)
        except ValueError as e:
            raise ArraysRefused(
                f"{path.name}: line {number}, column {name!r}: {text[:40]!r} is no number",
                hint=f"Encode it as a number, or name the column {_SLICE}{name} to split scores by it.",
            ) from e
    return np.array(texts, np.float32)

"""Rows from a CSV file: a header, numbers, one column of labels, and columns `slice:<name>` that scores are split by."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_formats.core.array_file import ArraysRefused
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
    try:
        if path.stat().st_size > max_bytes:
            raise ArraysRefused(f"{path.name}: larger than {max_bytes} bytes", hint="Give the rows as .npz.")
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as e:
        raise ArraysRefused(f"{path.name}: not a readable CSV file with a header: {e}") from e
    if not header:
        raise ArraysRefused(f"{path.name}: is empty", hint="Write a header and a line for each row.")
    if label not in header or len(set(header)) != len(header):
        told = f"has no column {label!r}" if label not in header else "has a column twice"
        raise ArraysRefused(f"{path.name}: the header {told}; it is {header[:20]}", hint="Name the labels' column by --label.")
    columns = tuple(n for n in header if n != label and not n.startswith(_SLICE))
    lines = [line for line in lines if line]
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise ArraysRefused(f"{path.name}: line {number} has {len(line)} values, the header {len(header)}")
    by = {name: [line[i] for line in lines] for i, name in enumerate(header)}
    values = [_numbers(path, name, by[name]) for name in columns]
    if not values or not lines:
        raise ArraysRefused(f"{path.name}: no rows, or no column beside the labels")
    slices = {n.removeprefix(_SLICE): np.array(v) for n, v in by.items() if n.startswith(_SLICE)}
    return Table(columns, np.stack(values, axis=1), np.array(by[label]), slices)


def _numbers(path: Path, name: str, texts: Sequence[str]) -> Array:
    for number, text in enumerate(texts, 2):
        try:
            float(text)
        except ValueError as e:
            raise ArraysRefused(
                f"{path.name}: line {number}, column {name!r}: {text[:40]!r} is no number",
                hint=f"Encode it as a number, or name the column {_SLICE}{name} to split scores by it.",
            ) from e
    return np.array(texts, np.float32)

"""Parquet in and out, for `spoke infer` and `spoke data import`. Needs the extra `parquet` (pyarrow), imported when it is used.

A column of numbers or text becomes one array; a column of lists (all of one length) one array with a second dimension.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model_formats.core.errors import OperatorError
from model_formats.core.runtime import Array

__all__ = ["ParquetInvalid", "ParquetMissing", "read_columns", "write_columns"]


class ParquetMissing(OperatorError):
    """A Parquet file is asked for, but its library is not installed."""

    code = "parquet_extra_missing"
    hint = "Install the extra: pip install 'spokeshave[parquet]'; or use .csv or .npz."


class ParquetInvalid(OperatorError):
    """A file that is not readable as Parquet, or holds what has no place in rows."""

    code = "parquet_invalid"
    http = 400
    hint = "Write it again: columns of numbers, of text, or of lists of numbers that are all of one length."


def read_columns(path: Path) -> dict[str, Array]:
    """Every column. An absent number is NaN; absent text is refused. Raises ParquetMissing, ParquetInvalid."""
    arrow, parquet = _pyarrow(path)
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError, arrow.ArrowException) as e:
        raise ParquetInvalid(f"{path.name}: not readable as Parquet: {e}") from e
    return {name: _array(arrow, path, name, column) for name, column in zip(table.column_names, table.columns, strict=True)}


def write_columns(path: Path, columns: Mapping[str, Array]) -> None:
    """Write columns of one dimension each. Raises ParquetMissing."""
    arrow, parquet = _pyarrow(path)
    parquet.write_table(arrow.table({name: arrow.array(values) for name, values in columns.items()}), path)


def _array(arrow: Any, path: Path, name: str, column: Any) -> Array:
    kind = column.type
    if arrow.types.is_list(kind) or arrow.types.is_large_list(kind) or arrow.types.is_fixed_size_list(kind):
        rows = column.to_pylist()
        try:
            found = np.array(rows, np.float64)
        except (TypeError, ValueError) as e:
            raise ParquetInvalid(f"{path.name}: column {name!r}: its lists are not all of one length, or not of numbers") from e
        return found
    values: Array = column.to_numpy()
    if values.dtype.kind == "O" and column.null_count:
        raise ParquetInvalid(f"{path.name}: column {name!r}: {column.null_count} values are absent")
    return values


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as e:
        raise ParquetMissing(f"{path.name}: Parquet needs pyarrow, which is not installed") from e
    return arrow, parquet

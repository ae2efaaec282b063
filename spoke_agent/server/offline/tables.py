"""Rows from files and back: `.npz`, `.csv`, `.parquet` (extra `parquet`), or a folder of `.npy` arrays, one row each."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from model_formats.core.array_file import read_arrays, write_arrays
from model_formats.core.csv_file import read_csv
from model_formats.core.errors import OperatorError
from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import TensorContract
from spoke_agent.data.parquet import read_columns, write_columns
from spoke_agent.server.protocol.tensors import DTYPES

__all__ = ["TableInvalid", "read_rows", "write_rows"]

_MOST_BYTES = 4 << 30


class TableInvalid(OperatorError):
    """An input file does not hold what the model takes, or a format is not known."""

    code = "table_invalid"
    hint = "`spoke infer` takes .npz (one array per input), .csv or .parquet (one column per value), or a folder of .npy files."


def read_rows(path: Path, inputs: tuple[TensorContract, ...]) -> dict[str, Array]:
    """Every input of the model, each [rows, ...]. Raises TableInvalid that names the column or array."""
    if path.is_dir():
        found = _from_folder(path, inputs)
    elif path.suffix == ".npz":
        found = read_arrays(path, max_bytes=_MOST_BYTES)
    elif path.suffix in (".csv", ".parquet"):
        found = _from_columns(path, _columns(path), inputs)
    else:
        raise TableInvalid(f"{path.name}: not a .npz, .csv or .parquet file, and not a folder")
    return {t.name: _shaped(path, found, t) for t in inputs}


def write_rows(path: Path, columns: Mapping[str, Array]) -> None:
    """Write columns; an array of several values per row becomes several columns (in `.npz` it stays whole)."""
    if path.suffix == ".npz":
        write_arrays(path, columns)
        return
    flat = dict(_flat(columns))
    if path.suffix == ".parquet":
        write_columns(path, flat)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(flat)
            writer.writerows(zip(*(values.tolist() for values in flat.values()), strict=True))
    else:
        raise TableInvalid(f"{path.name}: results are written as .npz, .csv or .parquet")


def _from_folder(path: Path, inputs: tuple[TensorContract, ...]) -> dict[str, Array]:
    files = sorted(path.glob("*.npy"))
    if len(inputs) != 1 or not files:
        raise TableInvalid(f"{path.name}/: needs .npy files, and a model with one input (this has {len(inputs)})")
    try:
        rows = [np.load(file, allow_pickle=False) for file in files]
        return {inputs[0].name: np.stack([row.reshape(rows[0].shape) for row in rows])}
    except (ValueError, OSError) as e:
        raise TableInvalid(f"{path.name}/: {e}") from e


def _columns(path: Path) -> dict[str, Array]:
    if path.suffix == ".parquet":
        return read_columns(path)
    columns, lines = read_csv(path, TableInvalid)
    if not lines:
        raise TableInvalid(f"{path.name}: holds no rows")
    return {name: np.array(values) for name, values in columns.items()}


def _from_columns(path: Path, columns: Mapping[str, Array], inputs: tuple[TensorContract, ...]) -> dict[str, Array]:
    """A column of lists by the input's name, else by the contract's column names where it has them; otherwise, for one input, all
    columns but `id` in their order.
    """
    found = {}
    for tensor in inputs:
        whole = columns.get(tensor.name)
        if whole is not None and whole.ndim > 1:
            found[tensor.name] = whole
            continue
        if tensor.columns is not None:
            names = [c.name for c in tensor.columns]
        elif len(inputs) == 1:
            names = [n for n in columns if n != "id"]
        else:
            width = int(np.prod(tensor.shape[1:])) if len(tensor.shape) > 1 else 1
            names = [tensor.name] if width == 1 else [f"{tensor.name}_{i}" for i in range(width)]
        absent = [n for n in names if n not in columns]
        if absent:
            raise TableInvalid(f"{path.name}: column {absent[0]!r} is missing")
        found[tensor.name] = np.stack([_typed(path, n, columns[n], tensor) for n in names], axis=1)
    return found


def _typed(path: Path, name: str, values: Array, tensor: TensorContract) -> Array:
    if tensor.datatype == "BYTES":
        return values.astype(np.object_)
    try:
        return values.astype(np.float64).astype(DTYPES[tensor.datatype])
    except ValueError as e:
        raise TableInvalid(f"{path.name}: column {name!r}: {e}") from e


def _shaped(path: Path, found: Mapping[str, Array], tensor: TensorContract) -> Array:
    array = found.get(tensor.name)
    if array is None:
        raise TableInvalid(f"{path.name}: no array {tensor.name!r}; there are {', '.join(sorted(found))}")
    try:
        return array.reshape(-1, *tensor.shape[1:]).astype(DTYPES[tensor.datatype], copy=False)
    except ValueError as e:
        raise TableInvalid(f"{path.name}: {tensor.name!r} has shape {list(array.shape)}, not {list(tensor.shape)}") from e


def _flat(columns: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    for name, array in columns.items():
        if array.ndim == 1:
            yield name, array
        else:
            rest = array.reshape(len(array), -1)
            yield from ((f"{name}_{i}", rest[:, i]) for i in range(rest.shape[1]))

"""Imports rows into the local store: from a CSV, an npz, or a folder of either. They are run through the champion first.

CSV: one row a line; columns named as the contract's (`pixel0` ...) or `<input>.<n>`, and `label` (a class name of the contract,
or its position). npz: the inputs by name, and `label`. Parquet (extra `parquet`): as CSV, or lists by input.
Nothing is stored unless all fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_formats.core.csv_file import read_csv
from model_formats.core.errors import OperatorError
from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from spoke_agent.data.parquet import read_columns

__all__ = ["ImportRefused", "ImportedRows", "read_rows"]

_DTYPES = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8}


class ImportRefused(OperatorError):
    """A file that does not fit the model's contract."""

    code = "import_refused"
    http = 400
    hint = "The column or array that is named must be there, of the contract's shape, with finite numbers. Nothing was imported."


@dataclass(frozen=True, slots=True)
class ImportedRows:
    """Inputs by name, and labels (NaN where there is none)."""

    file: str
    inputs: dict[str, Array]
    labels: Array


def read_rows(path: Path, contract: FeatureContract) -> Iterator[ImportedRows]:
    """Read a file, or each file of a folder in name order. Raises ImportRefused that names file, field and rule."""
    if path.is_dir():
        for file in sorted(p for p in path.iterdir() if p.suffix in (".csv", ".npz", ".parquet")):
            yield from read_rows(file, contract)
    elif path.suffix == ".csv":
        yield _from_columns(path.name, read_csv(path, ImportRefused)[0], contract)
    elif path.suffix == ".npz":
        yield _from_npz(path, contract)
    elif path.suffix == ".parquet":
        yield _from_columns(path.name, _parquet(path), contract)
    else:
        raise ImportRefused(f"{path.name}: not a .csv, .npz or .parquet file, nor a folder of them")


def _parquet(path: Path) -> dict[str, list[str]]:
    """As text, like a CSV; a column of lists becomes one column for each place (`image.0`, ...)."""
    found: dict[str, list[str]] = {}
    for name, values in read_columns(path).items():
        flat = [(name, values)] if values.ndim == 1 else [(f"{name}.{i}", values[:, i]) for i in range(values.shape[1])]
        found |= {column: ["" if v != v else str(v) for v in given.tolist()] for column, given in flat}  # NaN: absent
    return found


def _from_columns(file: str, columns: dict[str, list[str]], contract: FeatureContract) -> ImportedRows:
    rows = len(next(iter(columns.values()), []))
    if not rows:
        raise ImportRefused(f"{file}: holds no rows")
    inputs = {t.name: _tensor(file, t, columns, rows) for t in contract.inputs}
    labels = [_label(file, text, contract) for text in columns.get("label", [""] * rows)]
    return ImportedRows(file, inputs, np.array(labels))


def _tensor(file: str, tensor: TensorContract, columns: dict[str, list[str]], rows: int) -> Array:
    shape = tensor.shape[1:]
    if any(n < 0 for n in shape) or tensor.datatype not in _DTYPES:
        raise ImportRefused(f"{file}: {tensor.name} has a free shape or text; import it as .npz")
    width = int(np.prod(shape)) if shape else 1
    given = [c.name for c in tensor.columns] if tensor.columns else []
    names = given if len(given) == width else [f"{tensor.name}.{i}" for i in range(width)]
    table = np.empty((rows, width), _DTYPES[tensor.datatype])
    for i, name in enumerate(names):
        if name not in columns:
            raise ImportRefused(f"{file}: column {name!r} is missing")
        categories = tensor.columns[i].categories if tensor.columns and len(given) == width else None
        table[:, i] = [_number(file, name, text, categories) for text in columns[name]]
    return table.reshape(rows, *shape)


def _number(file: str, name: str, text: str, categories: tuple[str, ...] | None) -> float:
    if categories is not None and text in categories:
        return float(categories.index(text))
    try:
        value = float(text)
    except ValueError as e:
        raise ImportRefused(
            f"{file}: column {name!r}: {text[:20]!r} is not a number (or not one of the contract's categories)"
        ) from e
    if not np.isfinite(value):
        raise ImportRefused(f"{file}: column {name!r}: a value is not finite")
    return value


def _from_npz(path: Path, contract: FeatureContract) -> ImportedRows:
    from model_formats.core.array_file import read_arrays

    arrays = read_arrays(path, max_bytes=1 << 30)
    inputs: dict[str, Array] = {}
    for tensor in contract.inputs:
        if tensor.name not in arrays:
            raise ImportRefused(f"{path.name}: array {tensor.name!r} is missing")
        array = arrays[tensor.name]
        if array.ndim != len(tensor.shape) or any(w not in (-1, n) for w, n in zip(tensor.shape, array.shape, strict=True)):
            raise ImportRefused(f"{path.name}: {tensor.name} has shape {array.shape}, the contract says {tensor.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ImportRefused(f"{path.name}: {tensor.name} holds numbers that are not finite")
        inputs[tensor.name] = array.astype(_DTYPES.get(tensor.datatype, array.dtype))
    rows = len(next(iter(inputs.values())))
    labels = arrays.get("label", np.full(rows, np.nan)).astype(np.float64)
    if any(len(a) != rows for a in inputs.values()) or labels.shape != (rows,):
        raise ImportRefused(f"{path.name}: the arrays differ in their number of rows")
    _check_classes(path.name, labels, contract)
    return ImportedRows(path.name, inputs, labels)


def _label(file: str, text: str, contract: FeatureContract) -> float:
    if text == "":
        return float("nan")
    if contract.classes is not None and text in contract.classes:
        return float(contract.classes.index(text))
    value = _number(file, "label", text, None)
    _check_classes(file, np.array([value]), contract)
    return value


def _check_classes(file: str, labels: Array, contract: FeatureContract) -> None:
    if contract.classes is None or contract.task != "classification":
        return
    given = labels[~np.isnan(labels)]
    wrong = given[(given != np.floor(given)) | (given < 0) | (given >= len(contract.classes))]
    if len(wrong):
        raise ImportRefused(f"{file}: label {wrong[0]:g} is not one of the contract's {len(contract.classes)} classes")

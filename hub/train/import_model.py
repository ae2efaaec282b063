"""A model that was trained elsewhere, and rows in files: what `hub model import` builds from.

From a notebook: `import_model("model.onnx", Path("train.npz"), Path("test.npz"))`, then `build_model_folder(brought.source, out,
brought.data, options)` with `options.contract = brought.contract`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from model_formats.build.csv_rows import read_table
from model_formats.build.dataset import BuildData, Rows, read_rows
from model_formats.core.errors import AuthorError
from model_formats.core.runtime import Array
from model_formats.core.types import Datatype
from model_formats.documents.evidence import Lineage
from model_formats.documents.feature_contract import FeatureContract, Field_, TensorContract
from model_formats.export.hf_folder import HfFolder
from model_formats.export.open import open_source
from model_formats.export.source import ModelSource

__all__ = ["ImportedModel", "ContractUnclear", "import_model"]

Task = Literal["classification", "regression", "embedding"]
_DATATYPES: Mapping[str, Datatype] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip


class ContractUnclear(AuthorError):
    """Rows and source do not say what the model takes and gives, or contradict what was said."""

    code = "contract_unclear"
    hint = "Write a contract.json (see docs/package.md and `hub model import --help`) and give it by --contract."


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """All that a build needs but the author's words."""

    source: ModelSource
    data: BuildData
    contract: FeatureContract
    lineage: Lineage


@dataclass(frozen=True, slots=True)
class _File:
    """Rows as they lie in a file: labels may still be text, and a table has names for its columns."""

    inputs: Mapping[str, Array]
    labels: Array
    slices: Mapping[str, Array]
    columns: tuple[str, ...] = ()


def import_model(
    source: str,
    train: Path,
    held_out: Path,
    *,
    contract: Path | None = None,
    task: Task | None = None,
    classes: Sequence[str] = (),
    label: str = "label",
) -> ImportedModel:
    """Open a source (see `open_source`) and its rows.

    Rows are `.npz` (`input:<name>`, `labels`, `column:<name>`) or `.csv` (`label` names its column of labels). Without a contract
    file, a Hugging Face folder or the rows tell it: names, types and shapes of the inputs, and the classes found in the labels.
    Raises SourceRefused, ArraysRefused, ContractUnclear, and what is wrong with a contract file.
    """
    if ":" in source and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # `python -m` finds a module beside you; a console script does not
    given = FeatureContract.read(contract) if contract else None
    tensor = given.inputs[0].name if given and given.inputs else "row"
    seen, unseen = _read(train, label, tensor), _read(held_out, label, tensor)
    if seen.columns != unseen.columns:
        raise ContractUnclear(
            f"{train.name} and {held_out.name}: {_apart(seen.columns, unseen.columns)}", hint="Write both with the same header."
        )
    opened = open_source(source, seen.inputs)
    if given is None and isinstance(opened, HfFolder) and not classes and task is None:
        given = opened.contract()
    names = tuple(classes) or (given.classes if given else None) or ()
    if not names and (given.task if given else task or "classification") == "classification":
        names = _classes(seen.labels)
    rows, others = _rows(seen, names, train), _rows(unseen, names, held_out)
    agreed = given or _contract(seen, unseen, task or "classification", names)
    return ImportedModel(opened, BuildData(rows, others), agreed, Lineage(dataset=rows.digest, rows=len(rows)))


def _apart(seen: Sequence[str], unseen: Sequence[str]) -> str:
    """What tells two headers apart."""
    missing, strange = sorted(set(seen) - set(unseen)), sorted(set(unseen) - set(seen))
    told = [f"the second has no column {name!r}" for name in missing[:3]] + [
        f"the first has no column {n!r}" for n in strange[:3]
    ]
    return ", ".join(told) or "the same columns in another order"


def _read(path: Path, label: str, tensor: str) -> _File:
    if path.suffix == ".csv":
        table = read_table(path, label=label)
        return _File({tensor: table.values}, table.labels, table.slices, table.columns)
    rows = read_rows(path)
    return _File(rows.inputs, rows.labels, rows.columns)


def _classes(labels: Array) -> tuple[str, ...]:
    """Whole numbers count from 0 to the largest; text is sorted."""
    if (numbers := _whole(labels)) is not None:
        return tuple(str(n) for n in range(int(numbers.max(initial=0)) + 1))
    if labels.dtype.kind == "f":
        raise ContractUnclear("the labels are fractions: no classes", hint="Give --task regression, or whole numbers.")
    return tuple(str(name) for name in np.unique(labels))


def _whole(labels: Array) -> Array | None:
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64)
    try:
        return labels.astype(np.int64) if labels.dtype.kind in "US" else None
    except ValueError:
        return None


def _rows(file: _File, classes: Sequence[str], path: Path) -> Rows:
    """Labels as indexes of classes, or as numbers where there are none."""
    labels = file.labels
    if labels.dtype.kind in "US":
        labels = _indexes(labels, classes, path) if classes else _fractions(labels, path)
    return Rows(file.inputs, labels, file.slices)


def _indexes(labels: Array, classes: Sequence[str], path: Path) -> Array:
    place = {name: i for i, name in enumerate(classes)}
    unknown = sorted({str(name) for name in labels} - place.keys())
    if unknown and (whole := _whole(labels)) is not None:
        return whole
    if unknown:
        raise ContractUnclear(
            f"{path.name}: label {unknown[0]!r} is not among the classes {', '.join(classes[:20])}",
            hint="Give --classes as the labels are written, in the order of the model's outputs; or leave it out.",
        )
    return np.array([place[str(name)] for name in labels], np.int64)


def _fractions(labels: Array, path: Path) -> Array:
    try:
        return labels.astype(np.float32)
    except ValueError as e:
        raise ContractUnclear(f"{path.name}: labels are text, and the task has no classes: {e}") from e


def _contract(seen: _File, unseen: _File, task: Task, classes: tuple[str, ...]) -> FeatureContract:
    if task == "embedding":
        raise ContractUnclear("an embedding's outputs cannot be told from rows")
    inputs = tuple(_tensor(name, array, unseen.inputs.get(name), seen.columns) for name, array in seen.inputs.items())
    width = len(classes) if task == "classification" else int(np.prod(seen.labels.shape[1:]))
    output = TensorContract(name="logits" if classes else "value", datatype="FP32", shape=(-1, width))
    return FeatureContract(task=task, inputs=inputs, outputs=(output,), classes=classes or None)


def _tensor(name: str, array: Array, other: Array | None, columns: tuple[str, ...]) -> TensorContract:
    if array.dtype.name not in _DATATYPES:
        raise ContractUnclear(f"input {name!r} has type {array.dtype}, which no model takes")
    same = array.shape[1:] if other is None or other.ndim != array.ndim else [
        one if one == two else -1 for one, two in zip(array.shape[1:], other.shape[1:], strict=True)
    ]  # fmt: skip
    fields = tuple(Field_(name=column) for column in columns) or None
    return TensorContract(name=name, datatype=_DATATYPES[array.dtype.name], shape=(-1, *same), columns=fields)

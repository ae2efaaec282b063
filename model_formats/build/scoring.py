"""Scores outputs against labels, over all rows and per slice. Higher is better for every metric."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from model_formats.build.dataset import Rows
from model_formats.core.errors import AuthorError
from model_formats.core.runtime import Array, Session
from model_formats.documents.evidence import SliceScore
from model_formats.documents.feature_contract import FeatureContract

__all__ = ["METRICS", "LabelsRefused", "check_rows", "predict", "score", "slices"]

Metric = Literal["accuracy", "r2", "cosine"]
Task = Literal["classification", "regression", "embedding"]
METRICS: Mapping[Task, Metric] = {"classification": "accuracy", "regression": "r2", "embedding": "cosine"}
_BATCH = 256


class LabelsRefused(AuthorError):
    """Rows that do not fit the contract: wrong shape or type, labels outside the class list, too few."""

    code = "rows_invalid"
    hint = "Check the rows against the feature contract: names, types, shapes, and one label for each row."


def predict(session: Session, inputs: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    """Outputs of many rows, in batches of 256."""
    rows = len(next(iter(inputs.values())))
    parts = [session.run({n: a[i : i + _BATCH] for n, a in inputs.items()}, names) for i in range(0, rows, _BATCH)]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def score(task: Task, outputs: Array, labels: Array) -> float:
    """Accuracy, coefficient of determination, or mean cosine to the reference embedding (`labels` [n, d])."""
    if task == "classification":
        return float((outputs.reshape(len(outputs), -1).argmax(axis=1) == labels).mean())
    got, want = outputs.reshape(len(outputs), -1).astype(np.float64), labels.reshape(len(labels), -1).astype(np.float64)
    if task == "regression":
        return float(1 - ((got - want) ** 2).sum() / max(((want - want.mean(axis=0)) ** 2).sum(), 1e-12))
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    return float(((got * want).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())


def slices(contract: FeatureContract, outputs: Array, rows: Rows) -> tuple[SliceScore, ...]:
    """Scores by class and by each value of the rows' further columns."""
    columns: dict[str, Array] = dict(rows.columns)
    if contract.task == "classification" and contract.classes:
        columns = {"class": np.array(contract.classes)[rows.labels], **columns}
    return tuple(
        SliceScore(
            column=name,
            value=str(value),
            rows=int(chosen.sum()),
            score=score(contract.task, outputs[chosen], rows.labels[chosen]),
        )
        for name, column in columns.items()
        for value in np.unique(column)
        for chosen in [column == value]
    )


def check_rows(contract: FeatureContract, rows: Rows, what: str) -> None:
    """Raises LabelsRefused unless the rows fit the contract and are at least 20."""
    if len(rows) < 20:
        raise LabelsRefused(f"{what}: {len(rows)} rows, at least 20 are needed")
    for tensor in contract.inputs:
        array = rows.inputs.get(tensor.name)
        if array is None or len(array) != len(rows):
            raise LabelsRefused(f"{what}: input {tensor.name!r} is missing or has another number of rows than the labels")
        if array.ndim != len(tensor.shape) or any(
            w not in (-1, g) for g, w in zip(array.shape[1:], tensor.shape[1:], strict=True)
        ):
            raise LabelsRefused(f"{what}: input {tensor.name!r} has shape {array.shape}, the contract says {tensor.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
            raise LabelsRefused(
                f"{what}: input {tensor.name!r} holds NaN or infinity in {len(bad)} rows, first in row {bad[0] + 1}"
            )
    if contract.task == "classification":
        _check_classes(contract, rows.labels, what)


def _check_classes(contract: FeatureContract, labels: Array, what: str) -> None:
    classes = len(contract.classes or ())
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise LabelsRefused(f"{what}: labels run from {labels.min()} to {labels.max()}, the contract lists {classes} classes")

"""The reference profile: what the model's inputs and outputs looked like at the hub, in counts that can be summed over sites.

`profile.json` fixes the columns, the cells of each and the joint features, so every site counts in the same way: the sum of the
counts of any parts of a window equals the counts of the whole, exactly, and so does the sum over sites. Counts are bound to the
cells they were made with by `edges_digest`; what has another digest is never summed with them.

Cells of a numeric column: 32 quantile edges and 10 tail edges of the reference (docs/adr tells why not KLL), one cell below each
edge, one above the last, and one for missing. Cells of a categorical column: one a category, `other`, missing.

Joint: D random Fourier features of the standardised input columns (Rahimi and Recht 2007), cos(x W + b); their mean and
covariance over the reference serve a Hotelling test. W and b come from a seed by SHAKE-128 and exact arithmetic, so they are the
same on every machine.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from msgspec import Meta

from model_formats.core.document import Document, Value
from model_formats.core.errors import AuthorError
from model_formats.core.runtime import Array
from model_formats.core.types import Digest, digest_of
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.statistics.accuracy_estimate import Estimate
from model_formats.statistics.calibration import Calibration, Scores, calibrate, confidence

__all__ = [
    "FeatureProfile",
    "Joint",
    "ProfileRefused",
    "ReferenceProfile",
    "build_profile",
    "columns",
    "count",
    "rff",
]

Source = Literal["input", "confidence", "prediction"]
Summary = Literal["value", "mean", "std", "length"]

MAX_VALUES = 128
"""Inputs with more values a row than this are profiled by mean and standard deviation only."""
_TAILS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.98, 0.99, 0.995, 0.998, 0.999)
_QUANTILES = 32
_CLIP = 4.0
"""Standardised columns are clipped here before the joint features, so that one wild value cannot hide in a cosine."""


class ProfileRefused(AuthorError):
    """Reference rows that no profile can be made from."""

    code = "profile_invalid"
    hint = "Give at least 20 reference rows with finite values, in the shapes that the contract names."


class FeatureProfile(Value):
    """One column: where it comes from, its cells, and the reference's counts of them."""

    id: Annotated[str, Meta(min_length=1, max_length=120)]
    source: Source
    tensor: str
    summary: Summary = "value"
    index: int = 0
    """Which value of a row, for `value`."""
    kind: Literal["numeric", "categorical"]
    edges: tuple[float, ...] = ()
    """Numeric: rising. A value v is in cell `number of edges <= v`."""
    categories: tuple[int, ...] = ()
    """Categorical: the codes, in the order of the cells."""
    counts: tuple[int, ...]
    """Numeric: `len(edges) + 1` cells and missing; categorical: `len(categories)` cells, other, missing."""
    mean: float = 0.0
    std: float = 1.0

    @property
    def cells(self) -> int:
        """How many counts a window of this column has."""
        return len(self.edges) + 2 if self.kind == "numeric" else len(self.categories) + 2


class Joint(Value):
    """Random Fourier features of the numeric and categorical input columns."""

    seed: Annotated[str, Meta(max_length=64)]
    width: float
    """Kernel width, in standard deviations: the median distance between reference rows."""
    dimensions: Annotated[int, Meta(ge=1, le=256)]
    parameters: Digest
    """Digest of W and b; a machine that derives others must not use them."""
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    rows: int


class ReferenceProfile(Document):
    """`profile.json` of a package."""

    max_bytes: ClassVar[int] = 4 << 20

    kind: Literal["reference-profile"] = "reference-profile"
    schema_: Literal[1] = 1
    rows: int
    """Reference rows of the inputs; outputs may have fewer (each column's counts tell)."""
    output: str
    """The first output: what `prediction` and `confidence` are read from."""
    scores: Scores
    features: tuple[FeatureProfile, ...]
    joint: Joint | None = None
    calibration: Calibration | None = None
    estimate: Estimate | None = None

    @property
    def edges_digest(self) -> str:
        """Digest of all that decides how rows are counted, and of nothing else."""
        cells = [{k: v for k, v in f.plain.items() if k != "counts"} for f in self.features]
        joint = self.joint.parameters if self.joint else None
        return digest_of(_Cells(cells=cells, joint=joint, scores=self.scores, output=self.output).canonical())

    def feature(self, feature_id: str) -> FeatureProfile | None:
        """A column by its id."""
        return next((f for f in self.features if f.id == feature_id), None)


class _Cells(Document):
    cells: list[dict[str, object]]
    joint: str | None
    scores: str
    output: str


# ---- what a site does ------------------------------------------------------------------------------------------------------


def columns(profile: ReferenceProfile, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
    """The profile's columns of some rows: [n, features] float64, NaN where missing (or where the tensor is absent)."""
    rows = _rows(inputs) if inputs else _rows(outputs)
    found = np.full((rows, len(profile.features)), np.nan)
    scores = outputs.get(profile.output)
    for i, feature in enumerate(profile.features):
        if feature.source == "input":
            if feature.tensor in inputs:
                found[:, i] = _input_column(feature, inputs[feature.tensor])
        elif scores is not None:
            found[:, i] = _output_column(profile, feature, scores)
    return found


def count(profile: ReferenceProfile, table: Array) -> list[Array]:
    """Counts of each column's cells, int64. Exactly summable: count(a) + count(b) == count(a and b together)."""
    return [_count(feature, table[:, i]) for i, feature in enumerate(profile.features)]


def rff(profile: ReferenceProfile, table: Array) -> Array:
    """Joint features of the rows of `columns`: [n, D] float64 in [-1, 1] (D = 0 without a joint part). Missing is average."""
    if profile.joint is None:
        return np.empty((len(table), 0))
    weights, phases = _parameters(profile.joint, _width(profile.features))
    rows: Array = np.cos(_standardised(profile.features, table) @ weights + phases)
    return rows


def _rows(tensors: Mapping[str, Array]) -> int:
    return len(next(iter(tensors.values()))) if tensors else 0


def _input_column(feature: FeatureProfile, tensor: Array) -> Array:
    flat = tensor.reshape(len(tensor), -1)
    if feature.summary == "length":
        column = np.count_nonzero(flat, axis=1)
    elif feature.summary == "mean":
        column = flat.mean(axis=1, dtype=np.float64)
    elif feature.summary == "std":
        column = flat.std(axis=1, dtype=np.float64)
    else:
        column = flat[:, feature.index] if feature.index < flat.shape[1] else np.full(len(flat), np.nan)
    found: Array = column.astype(np.float64)
    return found


def _output_column(profile: ReferenceProfile, feature: FeatureProfile, scores: Array) -> Array:
    flat = scores.reshape(len(scores), -1)
    if feature.source == "confidence":
        return confidence(flat, profile.scores)
    return (flat[:, feature.index] if feature.kind == "numeric" else flat.argmax(axis=1)).astype(np.float64)


def _count(feature: FeatureProfile, column: Array) -> Array:
    missing = np.isnan(column)
    present = column[~missing]
    if feature.kind == "numeric":
        cell = np.searchsorted(np.asarray(feature.edges), present, side="right")
    else:
        codes = np.asarray(feature.categories, np.float64)
        order = np.argsort(codes)
        at = np.minimum(np.searchsorted(codes[order], present), len(codes) - 1)
        cell = np.where(codes[order][at] == present, order[at], len(codes))
    counts = np.bincount(cell, minlength=feature.cells).astype(np.int64)
    counts[-1] += int(missing.sum())
    return counts


# ---- joint features --------------------------------------------------------------------------------------------------------


def _joint_columns(features: Sequence[FeatureProfile]) -> Iterator[tuple[int, FeatureProfile]]:
    return ((i, f) for i, f in enumerate(features) if f.source == "input")


def _width(features: Sequence[FeatureProfile]) -> int:
    return sum(1 if f.kind == "numeric" else len(f.categories) for _, f in _joint_columns(features))


def _standardised(features: Sequence[FeatureProfile], table: Array) -> Array:
    parts: list[Array] = []
    for i, feature in _joint_columns(features):
        if feature.kind == "categorical":
            parts.append((table[:, i, None] == np.asarray(feature.categories, np.float64)).astype(np.float64))
        else:
            parts.append(
                (np.nan_to_num(table[:, i, None], nan=feature.mean, posinf=1e300, neginf=-1e300) - feature.mean) / feature.std
            )
    return np.clip(np.hstack(parts), -_CLIP, _CLIP) if parts else np.empty((len(table), 0))


@lru_cache(maxsize=16)
def _parameters(joint: Joint, width: int) -> tuple[Array, Array]:
    weights, phases = _draw(joint.seed, width, joint.dimensions, joint.width)
    if _parameter_digest(weights, phases) != joint.parameters:
        raise ProfileRefused(
            "profile.json: joint.parameters is not the digest of what its seed gives; joint features cannot be compared"
        )
    return weights, phases


def _draw(seed: str, width: int, dimensions: int, kernel: float) -> tuple[Array, Array]:
    """Near-normal W (sums of 12 uniforms, Irwin-Hall) / kernel, and uniform phases, from SHAKE-128: the same everywhere."""
    need = (width * 12 + 1) * dimensions
    drawn = np.frombuffer(hashlib.shake_128(seed.encode()).digest(2 * need), "<u2").astype(np.int64)
    normals = drawn[dimensions:].reshape(width, dimensions, 12).sum(axis=2) - 6 * 65535
    return normals / (65536.0 * kernel), drawn[:dimensions] * (2 * np.pi / 65536.0)


def _parameter_digest(weights: Array, phases: Array) -> str:
    return digest_of(weights.astype("<f4").tobytes() + phases.astype("<f4").tobytes())


# ---- what the hub does at build time ---------------------------------------------------------------------------------------


def build_profile(
    contract: FeatureContract,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    *,
    correct: Array | None = None,
    more_inputs: Mapping[str, Array] | None = None,
    dimensions: int = 32,
    seed: str = "spokeshave",
) -> ReferenceProfile:
    """Profile a reference: `inputs` and `outputs` of held-out rows (a model is too sure of rows it was trained on).

    `more_inputs` are further rows of the same source, for the input columns only. `correct` [n] bool calibrates confidence.
    Raises ProfileRefused on too few rows or none that are finite.
    """
    output = contract.outputs[0].name
    if (rows := _rows(inputs)) < 20 or len(outputs[output]) != rows:
        raise ProfileRefused(f"{rows} reference rows with {len(outputs[output])} outputs; at least 20 of both are needed")
    wide = {n: np.concatenate([a, more_inputs[n]]) if more_inputs and n in more_inputs else a for n, a in inputs.items()}
    scores = _kind_of_scores(contract, outputs[output])
    blank = ReferenceProfile(
        rows=_rows(wide), output=output, scores=scores, features=tuple(_blank_features(contract, wide, scores))
    )
    of_inputs, of_outputs = columns(blank, wide, {}), columns(blank, inputs, outputs)
    profile = blank.replace(
        features=tuple(_fill(f, (of_inputs if f.source == "input" else of_outputs)[:, i]) for i, f in enumerate(blank.features))
    )
    return profile.replace(
        joint=_fit_joint(profile, of_inputs, dimensions, seed),
        calibration=None if correct is None or scores == "values" else calibrate(confidence(outputs[output], scores), correct),
    )


def _kind_of_scores(contract: FeatureContract, scores: Array) -> Scores:
    if contract.task != "classification":
        return "values"
    flat = scores.reshape(len(scores), -1)
    return "probabilities" if flat.min() >= 0 and np.allclose(flat.sum(axis=1), 1, atol=1e-3) else "logits"


def _blank_features(contract: FeatureContract, inputs: Mapping[str, Array], scores: str) -> Iterator[FeatureProfile]:
    for tensor in contract.inputs:
        yield from _tensor_features(tensor, inputs[tensor.name])
    output = contract.outputs[0]
    if scores == "values":
        yield FeatureProfile(id="prediction", source="prediction", tensor=output.name, kind="numeric", counts=())
        return
    classes = tuple(range(len(contract.classes or range(output.shape[-1]))))
    yield FeatureProfile(
        id="prediction", source="prediction", tensor=output.name, kind="categorical", categories=classes, counts=()
    )
    yield FeatureProfile(id="confidence", source="confidence", tensor=output.name, kind="numeric", counts=())


def _tensor_features(tensor: TensorContract, rows: Array) -> Iterator[FeatureProfile]:
    name, values = tensor.name, int(np.prod(rows.shape[1:]))
    if rows.dtype.kind not in "fiub" or (rows.dtype.kind == "i" and -1 in tensor.shape[1:]):
        yield FeatureProfile(id=f"{name}.length", source="input", tensor=name, summary="length", kind="numeric", counts=())
        return
    if tensor.columns is None and values > 1:
        yield FeatureProfile(id=f"{name}.mean", source="input", tensor=name, summary="mean", kind="numeric", counts=())
        yield FeatureProfile(id=f"{name}.std", source="input", tensor=name, summary="std", kind="numeric", counts=())
    if tensor.columns is not None or values <= MAX_VALUES:
        for i in range(values):
            column = tensor.columns[i] if tensor.columns else None
            codes = tuple(range(len(column.categories))) if column and column.categories else ()
            yield FeatureProfile(
                id=column.name if column else f"{name}.{i}",
                source="input",
                tensor=name,
                index=i,
                kind="categorical" if codes else "numeric",
                categories=codes,
                counts=(),
            )


def _fill(feature: FeatureProfile, column: Array) -> FeatureProfile:
    present = column[np.isfinite(column)]
    if len(present) == 0:
        raise ProfileRefused(f"column {feature.id}: no finite value among {len(column)} reference rows")
    if feature.kind == "numeric":
        std = float(present.std())
        scale = max(1.0, abs(float(present.mean())))
        update = {"edges": _edges(present), "mean": float(present.mean()), "std": std if std > 1e-6 * scale else scale}
        feature = feature.replace(**update)
    return feature.replace(counts=tuple(int(c) for c in _count(feature, column)))


def _edges(present: Array) -> tuple[float, ...]:
    distinct = np.unique(present)
    if len(distinct) == 1:
        margin = max(1e-6, 1e-6 * abs(float(distinct[0])))
        return (float(distinct[0] - margin), float(distinct[0] + margin))
    if len(distinct) <= _QUANTILES:
        return tuple(float(e) for e in (distinct[:-1] + distinct[1:]) / 2)
    wanted = np.concatenate([np.arange(1, _QUANTILES + 1) / (_QUANTILES + 1), np.array(_TAILS)])
    return tuple(float(e) for e in np.unique(np.quantile(present, np.sort(wanted))))


def _fit_joint(profile: ReferenceProfile, table: Array, dimensions: int, seed: str) -> Joint | None:
    if (width := _width(profile.features)) < 2:
        return None
    rows = _standardised(profile.features, table)
    some = rows[:: max(1, len(rows) // 400)][:400]
    squares = (some**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * some @ some.T, 0))[np.triu_indices(len(some), 1)]
    kernel = float(np.float32(max(np.median(distances), 1e-3)))
    weights, phases = _draw(seed, width, dimensions, kernel)
    joint = np.cos(rows @ weights + phases)
    covariance = np.cov(joint, rowvar=False).reshape(dimensions, dimensions)
    return Joint(
        seed=seed,
        width=kernel,
        dimensions=dimensions,
        parameters=_parameter_digest(weights, phases),
        mean=tuple(float(v) for v in joint.mean(axis=0).round(9)),
        covariance=tuple(tuple(float(v) for v in row) for row in covariance.round(9)),
        rows=len(rows),
    )

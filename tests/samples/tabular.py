"""A table with known relations, its reference profile, and the ways in which it can drift: for drift, outbox and fleet tests."""

from functools import lru_cache

import numpy as np

from model_formats.documents.feature_contract import FeatureContract, Field_, TensorContract
from model_formats.statistics.reference_profile import ReferenceProfile, build_profile

MODEL, VERSION, INDEX = "till", 3, "sha256:" + "ab" * 32
_CATEGORIES = {8: tuple("abc"), 9: tuple("abcde")}

CONTRACT = FeatureContract(
    task="classification",
    inputs=(
        TensorContract(
            name="x",
            datatype="FP32",
            shape=(-1, 10),
            columns=tuple(Field_(name=f"c{i}", categories=_CATEGORIES.get(i), may_be_missing=True) for i in range(10)),
        ),
    ),
    outputs=(TensorContract(name="y", datatype="FP32", shape=(-1, 3)),),
    classes=("no", "maybe", "yes"),
)


def table(rows: int, rng: np.random.Generator, drift: str = "none") -> np.ndarray:
    """Five correlated normals, a bimodal, a Poisson, a lognormal, two categories; `drift` names what is different."""
    relation = 0.4 * np.ones((5, 5)) + 0.6 * np.eye(5)
    if drift == "relation":
        relation[0, 1:] *= -1
        relation[1:, 0] *= -1
    normals = rng.standard_normal((rows, 5)) @ np.linalg.cholesky(relation).T
    if drift == "shift":
        normals[:, 0] += 0.5
    if drift == "small shift":
        normals[:, 0] += 0.25
    if drift == "all shifted":
        normals += 0.1
    if drift == "scale":
        normals[:, 0] *= 1.3
    bimodal = np.where(rng.random(rows) < 0.5, -2, 2) + 0.7 * rng.standard_normal(rows)
    first = {"mix": [0.4, 0.35, 0.25], "mix of two": [0.4, 0.4, 0.2]}.get(drift, [0.5, 0.3, 0.2])
    columns = [normals, bimodal, rng.poisson(4, rows), rng.lognormal(0, 0.8, rows)]
    columns += [rng.choice(3, rows, p=first), rng.choice(5, rows, p=[0.4, 0.3, 0.15, 0.1, 0.05])]
    found = np.column_stack(columns).astype(np.float32)
    if drift == "missing":
        found[rng.random(rows) < 0.05, 1] = np.nan
    return found


def scores(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Logits that depend on the first columns a little."""
    noise = rng.standard_normal((len(rows), 3))
    return (noise + np.nan_to_num(rows[:, :3])).astype(np.float32)


@lru_cache(maxsize=4)
def profile(seed: int = 0, rows: int = 5000) -> ReferenceProfile:
    """The reference."""
    rng = np.random.default_rng(seed)
    reference = table(rows, rng)
    return build_profile(CONTRACT, {"x": reference}, {"y": scores(reference, rng)})

"""Labelled rows as features: the package's own (quantized) trunk is run over them, a few at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model_formats.core.runtime import Array, HeadAdapter, Session
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import ANCHORS, AdapterPoint
from model_formats.package import Package
from model_formats.package.adapter import Anchors, read_anchors
from model_formats.runtimes.select import open_exact
from spoke_agent.adapters.errors import NotAdaptable
from spoke_agent.adapters.head_fit import FitRows
from spoke_agent.data.store import StoredBatch
from spoke_agent.site.memory import release_unused

__all__ = ["Trunk", "labelled_rows", "labels_of", "open_trunk"]

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Trunk:
    """One variant, opened for its features, with what a fit needs from the package."""

    session: Session
    point: AdapterPoint
    anchors: Anchors
    base: str
    """Digest of the model file: adapters are bound to it."""
    contract: FeatureContract

    def features(self, inputs: dict[str, Array]) -> Array:
        """[n, d] float32. Raises RunFailed where the rows do not fit the model."""
        return np.concatenate([self._run(piece) for piece in _pieces(inputs)])

    def answers(self, inputs: dict[str, Array], adapter: HeadAdapter | None = None) -> Array:
        """[n, k] float32: what callers would get, from the hub's model or with an adapter. Raises RunFailed."""
        found = [self.session.run(piece, [self.point.output], adapter)[0] for piece in _pieces(inputs)]
        return np.concatenate([a.reshape(len(a), -1) for a in found])

    def _run(self, inputs: dict[str, Array]) -> Array:
        features: Array = self.session.run(inputs, [self.point.features])[0]
        return features.reshape(len(features), -1)


def open_trunk(package: Package, variant: str) -> Trunk:
    """Open a variant for fitting. Raises NotAdaptable, saying why.

    Code that ran only until here, and only while the model was opened, is given back to the system: the peak is what counts.
    """
    spec, chosen = package.spec, package.variant(variant)
    if spec.residency.learning == "none":
        raise NotAdaptable(f"{spec.model}@{spec.version}: its author allows no learning at a site")
    if spec.adapter is None or ANCHORS not in package.files:
        raise NotAdaptable(f"{spec.model}@{spec.version}: has no separable head")
    if chosen.format != "onnx":
        raise NotAdaptable(f"{spec.model}@{spec.version}: variant {variant} is {chosen.format}; adapters need an ONNX variant")
    anchors = read_anchors(package.path(ANCHORS))
    release_unused()
    session = open_exact(package.path(chosen.main))  # as on every CPU, whatever mode serves
    release_unused()
    return Trunk(session, spec.adapter, anchors, package.files[chosen.main].digest, package.contract)


def labelled_rows(trunk: Trunk, batches: Sequence[StoredBatch]) -> FitRows:
    """Features and labels of labelled batches (of any version: the contract is the same). May be empty."""
    width = len(trunk.anchors.head.weight)
    features = [trunk.features(batch.inputs) for batch in batches] or [np.empty((0, width), np.float32)]
    return FitRows(np.concatenate(features), labels_of(trunk, batches))


def labels_of(trunk: Trunk, batches: Sequence[StoredBatch]) -> Array:
    """Class indexes (int64), or targets. May be empty."""
    labels: Array = np.concatenate([batch.labels for batch in batches] or [np.empty(0)])
    return labels.astype(np.int64) if trunk.contract.task == "classification" else labels


def _pieces(inputs: dict[str, Array]) -> Iterator[dict[str, Array]]:
    rows = len(next(iter(inputs.values())))
    for start in range(0, rows, _AT_ONCE):
        yield {name: array[start : start + _AT_ONCE] for name, array in inputs.items()}

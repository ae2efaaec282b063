"""SABOTAGE, for the demo and the tests only: a version that is worse than its own evidence claims.

A package can be honest in form (signed, released, golden vectors agree) and still be bad. This makes one: the head's columns
are permuted after the evaluation, golden vectors and anchors are made from the damaged files, and the evidence keeps its good
claim, with the gate marked as overridden by hand. Every check of bytes passes; only evidence from sites can find it.
"""

import shutil
from pathlib import Path

import numpy as np

from model_formats.build.model_card import card
from model_formats.build.reference_data import golden_vectors
from model_formats.core.runtime import Array
from model_formats.documents.evidence import Evidence
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import (
    ANCHORS,
    CARD,
    CONTRACT,
    EVIDENCE,
    GOLDEN,
    PROFILE,
    PROVENANCE,
    SPEC,
    AdapterPoint,
    PackageSpec,
)
from model_formats.export.graph import constants, load_graph, save_graph
from model_formats.package.adapter import Anchors, Head, read_anchors, write_anchors
from model_formats.package.golden import read_golden, write_golden
from model_formats.statistics.reference_profile import ReferenceProfile

__all__ = ["sabotage"]


def sabotage(folder: Path, out: Path, *, version: int, overridden_by: str, classes: int = 4) -> Path:
    """Copy a built model folder to `out` as `version`, with `classes` columns of its head moved round. Returns `out`.

    Only ONNX variants; the model needs an adapter point (that is where the head is).
    """
    shutil.copytree(folder, out)
    spec = PackageSpec.parse((out / SPEC).read_bytes())
    if spec.adapter is None:
        raise ValueError("only a model with a separable head can be damaged this way")
    order = _permuted(read_anchors(out / ANCHORS).head.bias.size, classes)
    for variant in spec.variants:
        _permute_head(out / variant.main, spec.adapter, order)
    _renew_vectors(out, spec, spec.adapter, order)
    _renew_words(out, spec, version, overridden_by)
    return out


def _permuted(size: int, classes: int) -> Array:
    order = np.arange(size)
    order[:classes] = np.roll(order[:classes], 1)
    return order


def _permute_head(path: Path, point: AdapterPoint, order: Array) -> None:
    from onnx import numpy_helper

    model = load_graph(path)
    known = constants(model)
    for tensor in model.graph.initializer:
        if tensor.name in (point.weight, point.bias):
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(known[tensor.name][..., order]), tensor.name))
    save_graph(model, path)


def _renew_vectors(out: Path, spec: PackageSpec, point: AdapterPoint, order: Array) -> None:
    golden = read_golden(out / GOLDEN)
    files = {v.name: out / v.main for v in spec.variants}
    write_golden(out / GOLDEN, golden_vectors(files, golden.inputs, list(golden.outputs)))
    anchors = read_anchors(out / ANCHORS)
    head = Head(anchors.head.weight[:, order], anchors.head.bias[order])
    write_anchors(out / ANCHORS, Anchors(anchors.features, anchors.labels, head))


def _renew_words(out: Path, spec: PackageSpec, version: int, overridden_by: str) -> None:
    spec = spec.replace(version=version)
    evidence = Evidence.parse((out / EVIDENCE).read_bytes())
    evidence = evidence.replace(gate=evidence.gate.replace(overridden_by=overridden_by))
    (out / SPEC).write_bytes(spec.canonical())
    (out / EVIDENCE).write_bytes(evidence.canonical())
    contract, profile = FeatureContract.parse((out / CONTRACT).read_bytes()), ReferenceProfile.parse((out / PROFILE).read_bytes())
    (out / CARD).write_text(card(spec, contract, evidence, profile))
    (out / PROVENANCE).unlink()

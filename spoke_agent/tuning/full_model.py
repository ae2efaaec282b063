"""Fits the whole model instead of its head, at a site that has torch: cross-fitted and gated by the same rule.

The gate judges the file that ONNX Runtime would serve, not a copy in torch. Every fold is fitted on the rows outside it, so
there are five fits. Memory and rows are bounded here, time by the caller.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_formats.core.runtime import Array, HeadAdapter
from model_formats.finetune import FitTerms, Method, Sample, fit_file
from model_formats.package.adapter import Head
from spoke_agent.adapters.errors import NotAdaptable
from spoke_agent.adapters.gate import AdapterGateTerms, Fold, GateVerdict, judge, side_by_side
from spoke_agent.adapters.head_fit import FitRows
from spoke_agent.data.store import StoredBatch
from spoke_agent.tuning.features import Trunk, labelled_rows
from spoke_agent.tuning.recipe import folds_of, per_class, usable

__all__ = ["MOST_ROWS", "TunedModel", "tune_model"]

MOST_ROWS = 2000
_FOLDS = 4


@dataclass(frozen=True, slots=True)
class TunedModel:
    """Whether the fitted model may serve, and why. Its file is written to the path of the caller only if the gate passed."""

    verdict: GateVerdict
    rows: int
    per_class: tuple[int, ...]


def tune_model(
    trunk: Trunk,
    source: Path,
    out: Path,
    batches: Sequence[StoredBatch],
    method: Method,
    *,
    current: HeadAdapter | None,
    limit_s: float,
    gate: AdapterGateTerms,
    fit: FitTerms | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TunedModel:
    """Fit `source` (the served file) on labelled rows, judge it, and write `out` when the gate opens.

    `current`: the adapter that answers now. Raises NotAdaptable, TooFewLabels, and what `fit_file` raises.
    """
    rows = labelled_rows(trunk, batches)
    model_slots = usable(rows, trunk.anchors.head)
    site, anchors, deadline = _site(batches, rows.labels, model_slots), _anchors(trunk), clock() + limit_s

    def fitted(mine: Sample, its: Sample, file: Path) -> HeadAdapter:
        fit_file(source, file, mine, its, trunk.point, method, deadline=deadline, terms=fit, clock=clock)
        return trunk.session.load_adapter(str(file), method)

    def answered(model: HeadAdapter, sample: Sample) -> tuple[FitRows, list[Head]]:
        return side_by_side([trunk.answers(dict(sample.inputs), a) for a in (model, current, None)], sample.labels)

    fold, of_anchors = folds_of(rows.take(model_slots), _FOLDS), np.arange(len(anchors)) % _FOLDS
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        folds = []
        for k in range(_FOLDS):
            outside = site.take(np.flatnonzero(fold != k)), anchors.take(np.flatnonzero(of_anchors != k))
            model = fitted(*outside, Path(work) / f"{k}.onnx")
            judged, (new, now, hub) = answered(model, site.take(np.flatnonzero(fold == k)))
            known, _ = answered(model, anchors.take(np.flatnonzero(of_anchors == k)))
            folds.append(Fold(new, judged, known))
        verdict = judge(folds, now, hub, gate)
        if verdict.passed:
            fitted(site, anchors, Path(work) / "all.onnx")
            (Path(work) / "all.onnx").rename(out)
    return TunedModel(verdict, len(model_slots), per_class(rows.take(model_slots), trunk.anchors.head))


def _site(batches: Sequence[StoredBatch], labels: Array, model_slots: Array) -> Sample:
    inputs = {name: np.concatenate([b.inputs[name] for b in batches])[model_slots] for name in batches[0].inputs}
    return _numbers(Sample(inputs, _typed(labels[model_slots])))


def _anchors(trunk: Trunk) -> Sample:
    if not trunk.anchors.inputs:
        raise NotAdaptable(
            "the package holds no inputs of the hub's own rows, so nobody could tell what a whole fitted model forgets",
            hint="Fit the head alone, or ask the model's author for a version whose anchors come with their inputs.",
        )
    return _numbers(Sample(trunk.anchors.inputs, _typed(trunk.anchors.labels)))


def _typed(labels: Array) -> Array:
    return labels.astype(np.int64 if labels.dtype.kind in "iu" else np.float32)


def _numbers(sample: Sample) -> Sample:
    if any(a.dtype.kind not in "fiub" for a in sample.inputs.values()):
        raise NotAdaptable("the model takes text; only models of numbers can be fitted whole")
    return sample

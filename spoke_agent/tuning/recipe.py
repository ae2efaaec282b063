"""From labelled features to a head that may serve: clean, fit in folds, gate on what each fold held out, fit on all. Pure."""

from dataclasses import dataclass

import numpy as np

from model_formats.core.runtime import Array
from model_formats.package.adapter import Anchors, Head
from spoke_agent.adapters.errors import TooFewLabels
from spoke_agent.adapters.gate import AdapterGateTerms, Fold, GateVerdict, judge
from spoke_agent.adapters.head_fit import FitRows, fit_head, losses
from spoke_agent.adapters.permutation import shuffle

__all__ = ["Tuned", "clean", "folds_of", "per_class", "tune_head", "usable"]

PENALTIES = (1e-1, 1e-2, 1e-3)
_CV_STEPS = 12
_LEAST_ROWS = 40
_FOLDS, _FOLDS_OF_FEW, _FEW = 4, 8, 150


@dataclass(frozen=True, slots=True)
class Tuned:
    """The head, whether it may serve, and why."""

    head: Head
    verdict: GateVerdict
    penalty: float
    rows: int
    per_class: tuple[int, ...]
    """Rows of each class; for regression one number."""


def tune_head(rows: FitRows, anchors: Anchors, *, current: Head | None = None, terms: AdapterGateTerms | None = None) -> Tuned:
    """Fit and gate a head on a site's rows.

    Cross-fitted: in each of four folds (eight below 150 rows) a head is fitted on the others and judged on the rows and anchors
    of the fold, so that every row is held out once and even a small site can prove a gain. A fold's penalty is chosen by the rows
    outside it.
    When the gate opens, the recipe it proved is applied to all rows, and that head is returned. `current` is the head that
    serves now (the hub's own when None); the pull is always towards the hub's. Deterministic. Raises TooFewLabels.
    """
    rows = clean(rows, anchors.head)
    hub, known = anchors.head, _anchor_rows(anchors, rows)
    parts = _FOLDS_OF_FEW if len(rows) < _FEW else _FOLDS
    fold, of_anchors = folds_of(rows, parts), np.arange(len(known)) % parts
    trials = [_trials(rows, known, hub, fold != k, of_anchors != k) for k in range(parts)]
    folds = []
    for k in range(parts):
        # Chosen without fold k: a penalty that saw the rows it is judged on would look better than it is.
        best = int(np.argmin(sum(trials[j].errors for j in range(parts) if j != k)))
        others, near = rows.take(fold != k), trials[k].heads[best]
        head = fit_head(others, known.take(of_anchors != k), hub, PENALTIES[best], near=near)
        folds.append(Fold(head, rows.take(fold == k), known.take(of_anchors == k)))
    penalty = PENALTIES[int(np.argmin(sum(t.errors for t in trials)))]
    verdict = judge(folds, current or hub, hub, terms or AdapterGateTerms())
    head = fit_head(rows, known, hub, penalty, near=_middle([f.fitted for f in folds]))
    return Tuned(head, verdict, penalty, len(rows), per_class(rows, hub))


def per_class(rows: FitRows, hub: Head) -> tuple[int, ...]:
    """Rows of each class; for regression one number."""
    counts = np.bincount(rows.labels, minlength=hub.weight.shape[1]) if rows.classes else np.array([len(rows)])
    return tuple(int(c) for c in counts)


def clean(rows: FitRows, hub: Head) -> FitRows:
    """Without rows that are not finite, that are there twice, or whose class does not exist. Raises TooFewLabels."""
    return rows.take(usable(rows, hub))


def usable(rows: FitRows, hub: Head) -> Array:
    """Places of the rows that `clean` keeps. Raises TooFewLabels."""
    numbers = rows.labels.astype(np.float64)
    sound = np.isfinite(numbers) if numbers.ndim == 1 else np.isfinite(numbers).all(axis=1)
    finite = np.isfinite(rows.features).all(axis=1) & sound
    if rows.classes:
        finite &= (rows.labels >= 0) & (rows.labels < hub.weight.shape[1])
    sound_ones = np.flatnonzero(finite)
    first: dict[bytes, int] = {}  # np.unique would load numpy.ma, which takes longer than all the fits
    for place in sound_ones.tolist():
        # Adding 0.0 turns -0.0 into 0.0, which compares equal but has other bytes.
        first.setdefault((rows.features[place] + 0.0).tobytes(), place)
    places: Array = np.array([*first.values()], np.int64)
    kept = rows.take(places)
    if len(kept) < _LEAST_ROWS:
        raise TooFewLabels(
            f"{len(kept)} usable labelled rows of {len(rows)} (finite, different, of known classes); {_LEAST_ROWS} are needed"
        )
    if rows.classes and len(set(kept.labels.tolist())) < 2:
        raise TooFewLabels(f"all {len(kept)} rows have one class; that teaches nothing about the others")
    return places


def folds_of(rows: FitRows, parts: int) -> Array:
    """The fold of each row: 0 .. parts-1, every class spread evenly, by a fixed shuffle."""
    fold: Array = _order(rows) % parts
    return fold


def _anchor_rows(anchors: Anchors, rows: FitRows) -> FitRows:
    labels = anchors.labels.astype(np.int64 if rows.classes else np.float64)
    return FitRows(anchors.features.astype(np.float32), labels)


@dataclass(frozen=True, slots=True)
class _Trials:
    """One fold: for each penalty a head that is nearly fitted, and its loss on what it did not see."""

    heads: list[Head]
    errors: Array


def _trials(rows: FitRows, anchors: FitRows, hub: Head, seen: Array, seen_anchors: Array) -> _Trials:
    """From the stiffest penalty to the loosest, a few steps each."""
    near, heads, errors = hub, [], []
    for penalty in PENALTIES:
        near = fit_head(rows.take(seen), anchors.take(seen_anchors), hub, penalty, near=near, steps=_CV_STEPS)
        heads.append(near)
        errors.append(float(losses(near, rows.take(~seen)).sum()))
    return _Trials(heads, np.array(errors))


def _middle(heads: list[Head]) -> Head:
    return Head(np.mean([h.weight for h in heads], axis=0), np.mean([h.bias for h in heads], axis=0))


def _order(rows: FitRows) -> Array:
    """Each row's place within its class, shuffled by a fixed seed: taking places by turns is a stratified split."""
    place = np.empty(len(rows), np.int64)
    shuffled = shuffle("folds", len(rows))
    by_class = rows.labels[shuffled] if rows.classes else np.zeros(len(rows), np.int64)
    sequence = shuffled[np.argsort(by_class, kind="stable")]
    place[sequence] = np.arange(len(rows))
    return place

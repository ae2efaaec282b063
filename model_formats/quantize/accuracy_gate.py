"""The accuracy gate: refuses INT8 that loses more accuracy than the policy allows.

Before it refuses, it searches for the fewest layers that must stay in float.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_formats.core.errors import AuthorError
from model_formats.core.runtime import Array
from model_formats.documents.evidence import GateResult
from model_formats.quantize.layers import QuantizeRecipe, layers
from model_formats.runtimes.select import open_exact, open_session

__all__ = ["AccuracyDropRefused", "Quantized", "judge", "quantize_within"]

_MOST_LAYERS = 48
"""Beyond this many layers, sensitivity is measured on these many evenly chosen ones."""


class AccuracyDropRefused(AuthorError):
    """INT8 loses more accuracy than the model's policy allows, even with its worst layers in float."""

    code = "accuracy_drop"
    hint = "Give more (and more typical) calibration rows, allow a larger drop in the policy, or build with quantize='none'."


@dataclass(frozen=True, slots=True)
class Quantized:
    """An INT8 file, its score, and the layers that stayed in float."""

    path: Path
    score: float
    kept_float: tuple[str, ...]


def judge(reference: float, got: float, max_drop: float, overridden_by: str | None = None) -> GateResult:
    """The policy's verdict. An override lets a failure through and is recorded; it never turns `passed` into True."""
    drop = reference - got
    return GateResult(max_drop=max_drop, drop=round(drop, 9), passed=drop <= max_drop + 1e-9, overridden_by=overridden_by)


def quantize_within(
    recipe: QuantizeRecipe,
    prepared: Path,
    out: Path,
    rows: Mapping[str, Array],
    score: Callable[[Path], float],
    reference: float,
    max_drop: float,
) -> Quantized:
    """Quantize; while the drop is too large, give back 1, 2, 4, ... of the layers that disturb the output most, at most half
    of them; then look for the fewest between the last two that still do.

    `score` measures a file; `rows` serve to rank layers. Returns the best found; whether that is good enough is `judge`'s word.
    """
    recipe.quantize(prepared, out)
    plain = Quantized(out, score(out), ())
    if reference - plain.score <= max_drop:
        return plain
    ranked = _by_disturbance(recipe, prepared, out, rows)

    def give_back(count: int) -> Quantized:
        trial = out.with_name(f"float-{count}.onnx")
        recipe.quantize(prepared, trial, keep_float=ranked[:count])
        return Quantized(trial, score(trial), tuple(ranked[:count]))

    best = _fewest(give_back, max(1, len(ranked) // 2), plain, reference - max_drop)
    if best.path != out:
        best.path.replace(out)
    return Quantized(out, best.score, best.kept_float)


def _fewest(give_back: Callable[[int], Quantized], most: int, plain: Quantized, wanted: float) -> Quantized:
    """The trial with the fewest layers given back that reaches `wanted`; none: the one with the best score."""
    best, low, count = plain, 0, 1
    while count <= most and best.score < wanted:
        trial = give_back(count)
        best = trial if trial.score > best.score else best
        low, count = (low, count) if trial.score >= wanted else (count, count * 2)
    high = len(best.kept_float)
    while best.score >= wanted and high - low > 1:
        middle = (low + high) // 2
        trial = give_back(middle)
        best, low, high = (trial, low, middle) if trial.score >= wanted else (best, middle, high)
    return best


def _by_disturbance(recipe: QuantizeRecipe, prepared: Path, out: Path, rows: Mapping[str, Array]) -> list[str]:
    """Layers, the one whose quantization alone moves the first output most first."""
    few = {n: a[:64] for n, a in rows.items()}
    whole = open_session(prepared)
    name = whole.outputs[0].name
    truth = whole.run(few, [name])[0]
    names = layers(prepared)
    chosen = (
        [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(len(names), _MOST_LAYERS)).astype(int))] if names else []
    )
    trial = out.with_name("one-layer.onnx")
    errors: dict[str, float] = {}
    for layer in chosen:
        recipe.quantize(prepared, trial, only=[layer])
        errors[layer] = float(np.square(open_exact(trial).run(few, [name])[0] - truth).mean())
    trial.unlink(missing_ok=True)
    return sorted(errors, key=errors.__getitem__, reverse=True)

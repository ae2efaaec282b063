"""Makes the data that a package holds besides its variants: golden vectors, anchors, reference profile, accuracy estimate."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from model_formats.arithmetic import Evaluator, NotEvaluable
from model_formats.build.scoring import predict
from model_formats.build.session import FP32, BuildSession
from model_formats.core.runtime import Array, Session
from model_formats.documents.package_spec import AdapterPoint
from model_formats.export.graph import constants, load_graph
from model_formats.package.adapter import Anchors, Head
from model_formats.package.golden import Golden
from model_formats.runtimes.onnx import open_onnx
from model_formats.runtimes.select import open_session
from model_formats.statistics.accuracy_estimate import Estimate, EstimateWindow, fit_estimate
from model_formats.statistics.calibration import confidence
from model_formats.statistics.reference_profile import ReferenceProfile, build_profile

__all__ = ["anchors_of", "golden_rows", "golden_vectors", "profile_of"]

_ANCHOR_INPUT_BYTES = 2 << 20
"""Anchors come with their inputs up to here (100 images of 8x8 are 25 KB, of 128 tokens 300 KB); else heads alone are fitted."""
_FP32, _INT8 = (1e-4, 1e-3), (1e-3, 0.03)
"""Golden (atol, rtol); of INT8 only where the file cannot be nudged."""
_NUDGES, _ROOM = 3, (0.01, 0.25)
"""How often an INT8 file is nudged to see what right kernels differ by; and the least and most rtol that comes of it."""
_BITS = 16
"""Golden outputs are kept to so many bits of the largest: far finer than any tolerance, far coarser than a float64's last bit."""


def golden_vectors(
    files: Mapping[str, Path], inputs: Mapping[str, Array], names: list[str], note: Callable[[str], None] = lambda _: None
) -> Golden:
    """What each variant's file means for these inputs, with the tolerance of its precision. The default is the first by name.

    ONNX files are evaluated in float64 with exact integer sums, so every CPU gives the same bytes. An OpenVINO IR has no such
    evaluator: its vectors are what OpenVINO gives here, with weights that cannot saturate.
    """
    found: dict[str, Golden] = {}
    for variant, file in sorted(files.items()):
        outputs = [_coarse(a) for a in _meant(file, inputs, names, note)]
        atol, rtol = _FP32 if variant == FP32 else _tolerance(file, inputs, dict(zip(names, outputs, strict=True)), note)
        found[variant] = Golden(inputs, dict(zip(names, outputs, strict=True)), atol, rtol)
    first = next(iter(found.values()))
    return Golden(inputs, first.outputs, first.atol, first.rtol, found)


def _meant(file: Path, inputs: Mapping[str, Array], names: list[str], note: Callable[[str], None]) -> list[Array]:
    if file.suffix == ".xml":
        return open_session(file, engine="openvino").run(inputs, names)
    try:
        return Evaluator(file).run(inputs, names)
    except NotEvaluable as e:
        note(f"golden vectors of {file.parent.name} are ONNX Runtime's exact mode on this CPU: {e.message}")
        return open_onnx(file, mode="exact", as_written=True).run(inputs, names)


def _tolerance(
    file: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array], note: Callable[[str], None]
) -> tuple[float, float]:
    """(atol, rtol) of an INT8 file: twice of what last bits of a float32 do to its outputs.

    Kernels that are right differ where a number near half a step is rounded the other way. How much that does depends on the
    model: .005 of the largest logit for the digits CNN, .1 for features of MiniLM, whose scales depend on all rows of a batch.
    """
    if file.suffix == ".xml":
        return _INT8
    try:
        runs = [Evaluator(file, nudge).run(inputs, list(outputs)) for nudge in range(_NUDGES)]
    except NotEvaluable:
        return _INT8
    share = max(
        float(np.abs(got.astype(np.float64) - want).max(initial=0.0)) / max(float(np.abs(want).max(initial=0.0)), 1e-9)
        for run in runs
        for got, want in zip(run, outputs.values(), strict=True)
        if want.dtype.kind == "f"
    )
    if 2 * share > _ROOM[1]:
        note(f"{file.parent.name}: last bits change its outputs by {share:.2f} of the largest; its golden vectors prove little")
    return _INT8[0], float(np.ceil(np.clip(2 * share, *_ROOM) * 200) / 200)


def _coarse(array: Array) -> Array:
    """Floats on a grid of a power of two, so that another last bit of a float64 gives the same number."""
    largest = float(np.abs(array).max(initial=0.0)) if array.dtype.kind == "f" else 0.0
    if not 0.0 < largest < np.inf:
        return array
    step = 2.0 ** (np.floor(np.log2(largest)) - _BITS)
    rounded: Array = (np.rint(array.astype(np.float64) / step) * step + 0.0).astype(array.dtype)
    return rounded


def golden_rows(build: BuildSession) -> dict[str, Array]:
    """A few held-out rows, spread over the classes."""
    held, count = build.data.held_out, build.options.golden_rows
    if build.options.contract.task == "classification":
        order = np.argsort(held.labels, kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    else:
        chosen = np.arange(min(count, len(held)))
    return {n: np.ascontiguousarray(a[chosen]) for n, a in held.inputs.items()}


def anchors_of(build: BuildSession, session: Session, point: AdapterPoint) -> Anchors:
    """Features of hub-owned training rows, the same number of each class, with their inputs where those are small."""
    train = build.data.train
    if build.options.contract.task == "classification":
        each = max(1, build.options.anchors // max(1, len(build.options.contract.classes or ())))
        chosen = np.concatenate([np.flatnonzero(train.labels == c)[:each] for c in np.unique(train.labels)])
    else:
        chosen = np.arange(min(build.options.anchors, len(train)))
    rows = train.take(np.sort(chosen))
    found = constants(load_graph(build.main(FP32)))
    features = predict(session, rows.inputs, [point.features])[point.features]
    numbers = all(a.dtype.kind in "fiub" for a in rows.inputs.values())
    inputs = rows.inputs if numbers and sum(a.nbytes for a in rows.inputs.values()) <= _ANCHOR_INPUT_BYTES else {}
    head = Head(found[point.weight], found[point.bias])
    return Anchors(np.clip(features, -6e4, 6e4).astype(np.float16), rows.labels, head, inputs)


def profile_of(build: BuildSession, session: Session) -> ReferenceProfile:
    """Cells and counts of the held-out rows (inputs: of the training rows too), calibration, and the accuracy estimate."""
    held, contract = build.data.held_out, build.options.contract
    outputs = predict(session, held.inputs, [build.output])
    classify = contract.task == "classification"
    correct = outputs[build.output].reshape(len(held), -1).argmax(axis=1) == held.labels if classify else None
    profile = build_profile(
        contract, held.inputs, outputs, correct=correct, more_inputs=build.data.train.inputs, seed=build.options.model
    )
    estimate = estimate_of(build, session, profile) if classify and build.point and build.data.corruptions else None
    return profile.replace(estimate=estimate)


def estimate_of(build: BuildSession, session: Session, profile: ReferenceProfile) -> Estimate | None:
    """Fit accuracy without labels on damaged held-out rows."""
    build.say(f"estimate: {len(build.data.corruptions)} kinds of damage")
    held, point = build.data.held_out, build.point

    def window(inputs: Mapping[str, Array]) -> tuple[EstimateWindow, Array]:
        found = predict(session, inputs, [build.output, point.features if point else ""])
        scores = found[build.output].reshape(len(held), -1)
        predicted = scores.argmax(axis=1)
        return EstimateWindow(
            confidence(scores, profile.scores), predicted, found[point.features if point else ""]
        ), predicted == held.labels

    clean, correct = window(held.inputs)
    shifted = [(family, *window(damage(held.inputs))) for family, damage in build.data.corruptions]
    return fit_estimate(clean, correct, shifted, len(build.options.contract.classes or ()))

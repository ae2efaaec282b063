"""What a package brings beside its variants: golden vectors, anchors, the reference profile and the accuracy estimate."""

from collections.abc import Mapping

import numpy as np

from model_formats.adapter import Anchors, Head
from model_formats.calibration import confidence
from model_formats.estimate import Estimate, Window, fit_estimate
from model_formats.export.graph import constants, load_graph
from model_formats.golden import Golden
from model_formats.profile import ReferenceProfile, build_profile
from model_formats.runtimes.base import Array, Session
from model_formats.scoring import predict
from model_formats.spec import AdapterPoint
from model_formats.workbench import FP32, Workbench

__all__ = ["anchors_of", "golden_rows", "golden_vectors", "profile_of"]

_ANCHOR_INPUT_BYTES = 2 << 20
"""Anchors come with their inputs up to here (100 images of 8x8 are 25 KB, of 128 tokens 300 KB); else heads alone are fitted."""
_TOLERANCE = {"fp32": (1e-4, 1e-3), "int8": (1e-3, 0.03)}
"""Golden (atol, rtol): INT8 differs between engines and between processors with and without VNNI by a few steps of its scales."""


def golden_vectors(sessions: Mapping[str, Session], inputs: Mapping[str, Array], names: list[str]) -> Golden:
    """What each variant gives for these inputs, with the tolerance of its precision. The first session's is the default."""
    found: dict[str, Golden] = {}
    for variant, session in sessions.items():
        atol, rtol = _TOLERANCE["fp32" if variant == FP32 else "int8"]
        found[variant] = Golden(inputs, dict(zip(names, session.run(inputs, names), strict=True)), atol, rtol)
    first = next(iter(found.values()))
    return Golden(inputs, first.outputs, first.atol, first.rtol, found)


def golden_rows(build: Workbench) -> dict[str, Array]:
    """A few held-out rows, spread over the classes."""
    held, count = build.data.held_out, build.options.golden_rows
    if build.options.contract.task == "classification":
        order = np.argsort(held.labels, kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    else:
        chosen = np.arange(min(count, len(held)))
    return {n: np.ascontiguousarray(a[chosen]) for n, a in held.inputs.items()}


def anchors_of(build: Workbench, session: Session, point: AdapterPoint) -> Anchors:
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


def profile_of(build: Workbench, session: Session) -> ReferenceProfile:
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


def estimate_of(build: Workbench, session: Session, profile: ReferenceProfile) -> Estimate | None:
    """Fit accuracy without labels on damaged held-out rows."""
    build.say(f"estimate: {len(build.data.corruptions)} kinds of damage")
    held, point = build.data.held_out, build.point

    def window(inputs: Mapping[str, Array]) -> tuple[Window, Array]:
        found = predict(session, inputs, [build.output, point.features if point else ""])
        scores = found[build.output].reshape(len(held), -1)
        predicted = scores.argmax(axis=1)
        return Window(
            confidence(scores, profile.scores), predicted, found[point.features if point else ""]
        ), predicted == held.labels

    clean, correct = window(held.inputs)
    shifted = [(family, *window(damage(held.inputs))) for family, damage in build.data.corruptions]
    return fit_estimate(clean, correct, shifted, len(build.options.contract.classes or ()))

"""Golden vectors: inputs with the outputs each variant must give, and the tolerance.

A spoke runs them before a version answers a request. They catch a wrong engine, a CPU path that computes wrongly and a
damaged file. They do not show that the model is accurate: `evidence.json` and the rollout do that.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from msgspec import Struct, field

from model_formats.core.array_file import ArraysRefused, read_arrays, write_arrays
from model_formats.core.errors import DeviceError
from model_formats.core.runtime import Array, Session

__all__ = ["Golden", "GoldenMismatch", "GoldenResult", "check_golden", "read_golden", "write_golden"]

MAX_BYTES = 16 << 20


class GoldenMismatch(DeviceError):
    """The model runs here but gives other answers than where it was built."""

    code = "golden_mismatch"
    http = 422
    hint = "The version is not served here; choose another engine or variant, or report the machine to the model's author."


class Golden(Struct, frozen=True):
    """Inputs, and what each variant gave for them.

    An output agrees when every value is within `atol + rtol * scale`, where scale is the largest expected magnitude of that
    output: quantization noise follows the range of a tensor, not each value. `outputs`, `atol` and `rtol` are those of the first
    variant (or of the only one); `of(name)` gives another's.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    atol: float = 1e-4
    rtol: float = 1e-4
    variants: Mapping[str, "Golden"] = field(default_factory=dict)
    """Expectations by variant name; each of these has the same inputs and no further variants."""

    def of(self, variant: str) -> "Golden":
        """The expectations of one variant; those of the whole where it has none of its own."""
        return self.variants.get(variant, self)


class GoldenResult(Struct, frozen=True):
    """`worst` is the largest deviation in units of what is allowed; infinity is a missing or misshapen output."""

    ok: bool
    worst: float
    detail: str


def check_golden(session: Session, golden: Golden, variant: str | None = None) -> GoldenResult:
    """Run the inputs and compare. Without `variant`, any one variant's expectations will do. Raises RunFailed."""
    candidates = [golden.of(variant)] if variant else ([*golden.variants.values()] or [golden])
    names = [n for n in candidates[0].outputs if any(o.name == n for o in session.outputs)]
    got = dict(zip(names, session.run(golden.inputs, names), strict=True)) if names else {}
    return min((_compare(got, c) for c in candidates), key=lambda r: r.worst)


def _compare(got: Mapping[str, Array], golden: Golden) -> GoldenResult:
    deviations = {name: _deviation(got.get(name), want, golden.atol, golden.rtol) for name, want in golden.outputs.items()}
    name, worst = max(deviations.items(), key=lambda item: item[1], default=("", 0.0))
    detail = "all outputs agree" if worst <= 1 else f"output {name!r} is {worst:.3g} times further off than allowed"
    return GoldenResult(ok=worst <= 1, worst=worst, detail=detail)


def _deviation(got: Array | None, want: Array, atol: float, rtol: float) -> float:
    if got is None or got.shape != want.shape:
        return float("inf")
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(got, want) else float("inf")
    if not np.isfinite(got).all():
        return float("inf")
    allowed = atol + rtol * float(np.abs(want).max(initial=0.0))
    return float(np.abs(got.astype(np.float64) - want).max(initial=0.0)) / allowed


def write_golden(path: Path, golden: Golden) -> None:
    """Write `golden.npz`."""
    arrays = {f"input:{name}": array for name, array in golden.inputs.items()}
    for variant, one in (golden.variants or {"": golden}).items():
        arrays |= {f"output:{variant}:{name}": array for name, array in one.outputs.items()}
        arrays[f"tolerance:{variant}"] = np.array([one.atol, one.rtol])
    write_arrays(path, arrays)


def read_golden(path: Path) -> Golden:
    """Read `golden.npz`. Raises ArraysRefused on anything that is not one."""
    arrays = read_arrays(path, max_bytes=MAX_BYTES)
    inputs = {key.removeprefix("input:"): a for key, a in arrays.items() if key.startswith("input:")}
    names = [key.removeprefix("tolerance:") for key in arrays if key.startswith("tolerance:")]
    if not inputs or not names:
        raise ArraysRefused(f"{path.name}: no inputs or no expectations in it")
    found = {name: _one(path, arrays, inputs, name) for name in names}
    first = found[names[0]]
    return first if names == [""] else Golden(inputs, first.outputs, first.atol, first.rtol, found)


def _one(path: Path, arrays: Mapping[str, Array], inputs: Mapping[str, Array], variant: str) -> Golden:
    prefix = f"output:{variant}:"
    outputs = {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
    tolerance = arrays[f"tolerance:{variant}"]
    if (
        not outputs
        or tolerance.shape != (2,)
        or tolerance.dtype != np.float64
        or not (np.isfinite(tolerance) & (tolerance >= 0)).all()
    ):
        raise ArraysRefused(f"{path.name}: variant {variant!r} has no outputs or no valid tolerance")
    return Golden(inputs, outputs, float(tolerance[0]), float(tolerance[1]))

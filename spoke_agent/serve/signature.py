"""What a loaded model takes and gives, and holding a request against it: names, types, shapes, ranges, closed categories.

Built once at load from the contract; checking a request costs about a microsecond, ranges are looked at once per batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from model_formats.contract import FeatureContract, TensorContract
from model_formats.runtimes.base import Array
from spoke_agent.serve.errors import RequestInvalid
from spoke_agent.serve.inference_protocol import InferRequest

__all__ = ["Signature"]

Policy = Literal["refuse", "clip", "count"]


@dataclass(frozen=True, slots=True)
class Signature:
    """The visible face of one version."""

    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    policy: Policy
    batched: bool
    """Whether rows of several callers may share one run: every tensor's first dimension is free."""
    fixed: bool
    """Whether all other dimensions are fixed, so that any two requests can share a run."""

    @classmethod
    def of(cls, contract: FeatureContract) -> Self:
        """Read a contract."""
        tensors = (*contract.inputs, *contract.outputs)
        return cls(
            inputs=contract.inputs,
            outputs=contract.outputs,
            policy=contract.out_of_contract,
            batched=all(t.shape and t.shape[0] == -1 for t in tensors),
            fixed=all(-1 not in t.shape[1:] for t in contract.inputs),
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs callers may see, in order."""
        return tuple(t.name for t in self.outputs)

    def rows(self, request: InferRequest) -> int:
        """Check names, types, shapes and asked outputs; returns the number of rows. Raises RequestInvalid."""
        inputs = request.inputs
        rows = -1
        for want in self.inputs:
            array = inputs.get(want.name)
            if array is None:
                raise RequestInvalid(f"input {want.name!r} is missing; the model takes {self._takes()}")
            if request.datatypes[want.name] != want.datatype:
                raise RequestInvalid(f"input {want.name!r}: datatype {request.datatypes[want.name]}, must be {want.datatype}")
            if not _fits(array.shape, want.shape):
                raise RequestInvalid(f"input {want.name!r}: shape {list(array.shape)}, must be {list(want.shape)}")
            if self.batched:
                if rows not in (-1, array.shape[0]):
                    raise RequestInvalid(f"input {want.name!r}: {array.shape[0]} rows, but another input has {rows}")
                rows = array.shape[0]
        if len(inputs) != len(self.inputs):
            unknown = next(name for name in inputs if all(name != want.name for want in self.inputs))
            raise RequestInvalid(f"input {unknown!r} is unknown; the model takes {self._takes()}")
        if rows == 0:
            raise RequestInvalid("the request has no rows")
        self._check_outputs(request)
        return max(rows, 1)

    def within(self, inputs: Mapping[str, Array]) -> bool:
        """Whether every value is in contract. The common case is cheap: one look at the smallest and the largest."""
        for tensor in self.inputs:  # noqa: SIM110 - of every request, and a generator costs as much as the look
            if not _within(inputs[tensor.name], tensor):
                return False
        return True

    def enforce(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """For a request that is not within: the values to run, clipped where the policy says so.

        Raises RequestInvalid under policy `refuse`, and for what has no place in a range (NaN, a category) under `clip`.
        """
        if self.policy == "count":
            return inputs
        if self.policy == "refuse":
            raise RequestInvalid(next(f for t in self.inputs if (f := _fault(inputs[t.name], t)) is not None))
        return {t.name: _clip(inputs[t.name], t) for t in self.inputs}

    def _takes(self) -> str:
        return ", ".join(f"{t.name} {t.datatype}{list(t.shape)}" for t in self.inputs)

    def _check_outputs(self, request: InferRequest) -> None:
        if request.outputs is None:
            return
        names = self.output_names
        for name, _ in request.outputs:
            if name not in names:
                raise RequestInvalid(f"output {name!r} is unknown; the model gives {', '.join(names)}")


def _fits(shape: tuple[int, ...], want: tuple[int, ...]) -> bool:
    if len(shape) != len(want):
        return False
    if shape[1:] == want[1:]:  # the usual case: only the rows are free
        return want[:1] in ((-1,), shape[:1])
    return all(w in (-1, s) for s, w in zip(shape, want, strict=True))


def _within(array: Array, tensor: TensorContract) -> bool:
    if tensor.columns is not None:
        return _fault(array, tensor) is None
    if array.dtype.kind != "f" and tensor.low is None and tensor.high is None:
        return True
    if array.dtype.kind not in "fiu" or array.size == 0:
        return True
    low: float = array.item(array.argmin())  # NaN where there is one, as with min; much quicker on few values
    high: float = array.item(array.argmax())
    floor = -np.inf if tensor.low is None else tensor.low
    ceiling = np.inf if tensor.high is None else tensor.high
    # NaN compares false, so it is never within; infinities only where no bound is given would pass, hence the strict signs.
    return floor <= low and high <= ceiling and low != -np.inf and high != np.inf


def _fault(array: Array, tensor: TensorContract) -> str | None:
    if tensor.columns is not None:
        return _column_fault(array, tensor)
    if _within(array, tensor):
        return None
    finite = np.isfinite(array).all() if array.dtype.kind == "f" else True
    if not finite:
        return f"input {tensor.name!r}: a value is NaN or infinite"
    return f"input {tensor.name!r}: a value is outside {tensor.low}..{tensor.high} (found {array.min()}..{array.max()})"


def _column_fault(array: Array, tensor: TensorContract) -> str | None:
    for place, column in enumerate(tensor.columns or ()):
        values = array[..., place]
        if column.categories is not None and values.dtype.kind == "O":
            known = set(column.categories)
            odd = next((v for v in values.ravel().tolist() if v not in known), None)
            if odd is not None:
                return f"input {tensor.name!r}: column {column.name!r}: {odd!r} is not one of {', '.join(column.categories)}"
            continue
        if values.dtype.kind == "f":
            missing = np.isnan(values)
            if missing.any() and not column.may_be_missing:
                return f"input {tensor.name!r}: column {column.name!r}: a value is NaN"
            values = values[~missing]
            if np.isinf(values).any():
                return f"input {tensor.name!r}: column {column.name!r}: a value is infinite"
        if column.categories is not None and values.size and (values.min() < 0 or values.max() >= len(column.categories)):
            return f"input {tensor.name!r}: column {column.name!r}: a category number is not in 0..{len(column.categories) - 1}"
        if values.size and values.dtype.kind in "fiu" and not _between(values, column.low, column.high):
            return f"input {tensor.name!r}: column {column.name!r}: a value is outside {column.low}..{column.high}"
    return None


def _between(values: Array, low: float | None, high: float | None) -> bool:
    return (low is None or bool(values.min() >= low)) and (high is None or bool(values.max() <= high))


def _clip(array: Array, tensor: TensorContract) -> Array:
    """Into the range; what has no place in a range (NaN, a category) is refused all the same."""
    if tensor.columns is None:
        clipped = np.clip(array, tensor.low, tensor.high) if (tensor.low, tensor.high) != (None, None) else array
    else:
        clipped = array.copy()
        for place, column in enumerate(tensor.columns):
            if column.categories is None and (column.low, column.high) != (None, None):
                clipped[..., place] = np.clip(array[..., place], column.low, column.high)
    fault = _fault(clipped, tensor)
    if fault is not None:
        raise RequestInvalid(fault)
    return clipped.astype(array.dtype, copy=False)

"""What a loaded model takes and gives, and holding a request against it: names, types, shapes, ranges, closed categories.

Built once at load from the contract; checking a request costs about a microsecond, ranges are looked at once per batch.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Literal, Self

import numpy as np
from msgspec import Struct, field

from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from spoke_agent.server.protocol.bounded_cache import BoundedCache
from spoke_agent.server.protocol.json_codec import InferRequest
from spoke_agent.server_api.errors import RequestInvalid

__all__ = ["Signature", "all_between"]

Policy = Literal["refuse", "clip", "count"]


class _Wanted(Struct, frozen=True):
    """An input of the contract as requests are held against it: plain fields, read for every one of them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    rest: tuple[int, ...]
    """Sizes after the first."""
    tensor: TensorContract
    bounded: bool
    """Whether all values are held against the one range `low..high`."""
    low: float
    high: float

    @classmethod
    def of(cls, tensor: TensorContract) -> Self:
        low = -inf if tensor.low is None else tensor.low
        high = inf if tensor.high is None else tensor.high
        bounded = tensor.columns is None and tensor.datatype not in ("BOOL", "BYTES")
        bounded = bounded and (tensor.datatype.startswith("FP") or (low, high) != (-inf, inf))
        return cls(tensor.name, tensor.datatype, tensor.shape, tensor.shape[1:], tensor, bounded, low, high)


class Signature(Struct, frozen=True):
    """The visible face of one version."""

    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    policy: Policy
    batched: bool
    """Whether rows of several callers may share one run: every tensor's first dimension is free."""
    fixed: bool
    """Whether all other dimensions are fixed, so that any two requests can share a run."""
    output_names: tuple[str, ...]
    """Names of the outputs callers may see, in order."""
    _wanted: tuple[_Wanted, ...]
    _checked: BoundedCache[object, int] = field(default_factory=lambda: BoundedCache(64))
    """Rows of requests that are good, by their form."""

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
            output_names=tuple(t.name for t in contract.outputs),
            _wanted=tuple(_Wanted.of(t) for t in contract.inputs),
        )

    def rows(self, request: InferRequest) -> int:
        """Check names, types, shapes and asked outputs; returns the number of rows. Raises RequestInvalid."""
        known = self._checked.get(request.form)
        if known is not None:
            return known
        rows = self._rows(request)
        if request.form is not None:
            self._checked.remember(request.form, rows)
        return rows

    def _rows(self, request: InferRequest) -> int:
        inputs = request.inputs
        rows = -1
        for want in self._wanted:
            array = inputs.get(want.name)
            if array is None:
                raise RequestInvalid(f"input {want.name!r} is missing; the model takes {self._takes()}")
            if request.datatypes[want.name] != want.datatype:
                raise RequestInvalid(f"input {want.name!r}: datatype {request.datatypes[want.name]}, must be {want.datatype}")
            shape = array.shape
            if not _fits(shape, want):
                raise RequestInvalid(f"input {want.name!r}: shape {list(shape)}, must be {list(want.shape)}")
            if self.batched:
                if rows not in (-1, shape[0]):
                    raise RequestInvalid(f"input {want.name!r}: {shape[0]} rows, but another input has {rows}")
                rows = shape[0]
        if len(inputs) != len(self._wanted):
            unknown = next(name for name in inputs if all(name != want.name for want in self.inputs))
            raise RequestInvalid(f"input {unknown!r} is unknown; the model takes {self._takes()}")
        if rows == 0:
            raise RequestInvalid("the request has no rows")
        if request.outputs is not None:
            self._check_outputs(request.outputs)
        return 1 if rows == -1 else rows

    def within(self, inputs: Mapping[str, Array]) -> bool:
        """Whether every value is in contract. The common case is cheap: one look at the smallest and the largest."""
        for want in self._wanted:
            if want.bounded:
                if not all_between(inputs[want.name], want.low, want.high):
                    return False
            elif want.tensor.columns is not None and _column_fault(inputs[want.name], want.tensor) is not None:
                return False
        return True

    def enforce(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """For a request that is not within: the values to run, clipped where the policy says so.

        Raises RequestInvalid under policy `refuse`, and for what has no place in a range (NaN, a category) under `clip`.
        """
        if self.policy == "count":
            return inputs
        if self.policy == "refuse":
            raise RequestInvalid(next(f for w in self._wanted if (f := _fault(inputs[w.name], w)) is not None))
        return {w.name: _clip(inputs[w.name], w) for w in self._wanted}

    def _takes(self) -> str:
        return ", ".join(f"{t.name} {t.datatype}{list(t.shape)}" for t in self.inputs)

    def _check_outputs(self, asked: Sequence[tuple[str, bool]]) -> None:
        names = self.output_names
        for name, _ in asked:
            if name not in names:
                raise RequestInvalid(f"output {name!r} is unknown; the model gives {', '.join(names)}")


def all_between(array: Array, low: float, high: float) -> bool:
    """Whether all values are finite and in `low..high`, which may be infinite.

    `min` and `max` say as much, but bring all of NumPy's reductions along, which few values do not pay for.
    """
    if array.size == 0:
        return True
    least, most = array.item(array.argmin()), array.item(array.argmax())
    # NaN is both where there is one, and compares false. An infinity passes only a bound that is none, hence the strict signs.
    return low <= least and most <= high and least != -inf and most != inf  # type: ignore[no-any-return]


def _fits(shape: tuple[int, ...], want: _Wanted) -> bool:
    if len(shape) != len(want.shape):
        return False
    if shape[1:] == want.rest:  # the usual case: only the rows are free
        return not shape or want.shape[0] in (-1, shape[0])
    return all(w in (-1, s) for s, w in zip(shape, want.shape, strict=True))


def _fault(array: Array, want: _Wanted) -> str | None:
    tensor = want.tensor
    if tensor.columns is not None:
        return _column_fault(array, tensor)
    if not want.bounded or all_between(array, want.low, want.high):
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


def _clip(array: Array, want: _Wanted) -> Array:
    """Into the range; what has no place in a range (NaN, a category) is refused all the same."""
    tensor = want.tensor
    if tensor.columns is None:
        clipped = np.clip(array, tensor.low, tensor.high) if (tensor.low, tensor.high) != (None, None) else array
    else:
        clipped = array.copy()
        for place, column in enumerate(tensor.columns):
            if column.categories is None and (column.low, column.high) != (None, None):
                clipped[..., place] = np.clip(array[..., place], column.low, column.high)
    fault = _fault(clipped, want)
    if fault is not None:
        raise RequestInvalid(fault)
    return clipped.astype(array.dtype, copy=False)

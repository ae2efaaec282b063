"""The feature contract: what a model takes and gives, in names, types, ranges and closed category lists.

It travels in the signed package, so the server can refuse a bad request, the drift counters know their columns, and nobody
needs the training code to call the model.
"""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document, Value
from model_formats.core.types import Datatype

__all__ = ["FeatureContract", "Field_", "TensorContract"]


class Field_(Value):
    """One named column of a tabular input."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] | None = None
    """Closed list; anything else is out of contract."""
    may_be_missing: bool = False


class TensorContract(Value):
    """One tensor: its name and element type, and its shape without surprises (-1 is a free dimension, the first is the batch)."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    datatype: Datatype
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None
    columns: tuple[Field_, ...] | None = None
    """For tabular inputs: one entry per value of the last dimension."""


class FeatureContract(Document):
    """`contract.json` of a package."""

    max_bytes: ClassVar[int] = 4 << 20

    kind: Literal["feature-contract"] = "feature-contract"
    schema_: Literal[1] = 1
    task: Literal["classification", "regression", "embedding"]
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    """What callers see; `features` (the penultimate tensor) is not among them."""
    classes: tuple[str, ...] | None = None
    """Label of each column of the first output, for classification."""
    out_of_contract: Literal["refuse", "clip", "count"] = "refuse"

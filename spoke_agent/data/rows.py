"""Rows as values: batches from the server, batches for readers, and their byte form inside an encrypted record."""

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct, field

from model_formats.core.runtime import Array
from spoke_agent.data.errors import BatchInvalid

__all__ = ["RowBatch", "Purpose", "StoredBatch", "decode", "encode"]

Purpose = Literal["serving", "tuning"]
"""What rows are here for: callers sent them to be answered, or people brought them to fit a head on. Drift, accuracy and
whatever else is told of a site are about served rows alone.
"""

_INPUT, _OUTPUT = "i/", "o/"


class RowBatch(Struct, frozen=True):
    """Rows that one version answered. Each array has one entry per row in its first dimension.

    `request_ids` names the request of every row (several rows of one request share an id, in order; an empty id cannot be
    labelled). `times` are seconds since 1970. `outputs` are what callers got (logits, not features).
    """

    model: str
    version: int
    index: str
    request_ids: Sequence[str]
    times: Array
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    features: Array | None = None
    adapter: str = ""
    """Name of the adapter that answered, empty for the hub's own head."""
    purpose: Purpose = "serving"

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.times)

    def check(self) -> None:
        """Raise BatchInvalid unless everything has one entry per row."""
        lengths = {"request_ids": len(self.request_ids)} | {
            name: array.shape[0] if array.ndim else -1 for name, array in {**self.inputs, **self.outputs}.items()
        }
        wrong = [name for name, length in lengths.items() if length != self.rows]
        if wrong or not self.rows:
            raise BatchInvalid(
                f"{self.model}: {', '.join(wrong) or 'the batch'} does not have one entry for each of {self.rows} rows"
            )


class StoredBatch(Struct, frozen=True):
    """Rows that were stored together, decrypted. `labels` is NaN where none came yet."""

    id: int
    model: str
    version: int
    index: str
    times: Array
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    labels: Array
    adapter: str = ""
    features: Array | None = None
    kept: bool = field(default=False)
    """True for labelled rows that outlived their batch (the fair sample of the past)."""
    purpose: Purpose = "serving"

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.times)

    def where(self, mask: Array) -> "StoredBatch":
        """Only the rows where `mask` is true."""
        return StoredBatch(
            self.id,
            self.model,
            self.version,
            self.index,
            self.times[mask],
            {n: a[mask] for n, a in self.inputs.items()},
            {n: a[mask] for n, a in self.outputs.items()},
            self.labels[mask],
            self.adapter,
            None if self.features is None else self.features[mask],
            self.kept,
            self.purpose,
        )


def encode(inputs: Mapping[str, Array], outputs: Mapping[str, Array], times: Array, features: Array | None) -> bytes:
    """The plain bytes of a batch (npz without pickles; text as fixed-width)."""
    arrays = {_INPUT + n: _plain(a) for n, a in inputs.items()} | {_OUTPUT + n: _plain(a) for n, a in outputs.items()}
    arrays["times"] = np.asarray(times, np.float64)
    if features is not None:
        arrays["features"] = features
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def decode(data: bytes) -> tuple[dict[str, Array], dict[str, Array], Array, Array | None]:
    """Back from `encode`: inputs, outputs, times, features."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    inputs = {n.removeprefix(_INPUT): a for n, a in arrays.items() if n.startswith(_INPUT)}
    outputs = {n.removeprefix(_OUTPUT): a for n, a in arrays.items() if n.startswith(_OUTPUT)}
    return inputs, outputs, arrays["times"], arrays.get("features")


def _plain(array: Array) -> Array:
    if array.dtype.kind != "O":
        return array
    texts = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel()]
    return np.array(texts, dtype="S").reshape(array.shape)

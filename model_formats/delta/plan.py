"""Which deltas to publish with a version: measured, against the last versions, and only where they save."""

from collections.abc import Sequence
from dataclasses import dataclass

from model_formats.layout import BlobReader, Layout

__all__ = ["PlannedDelta", "plan_deltas"]


@dataclass(frozen=True, slots=True)
class PlannedDelta:
    """A delta that was made and kept in the layout, from one file to another by digest. (`DeltaOffer` on the wire.)"""

    base: str
    target: str
    delta: str
    size: int
    target_size: int


def plan_deltas(blobs: BlobReader, target: str, bases: Sequence[str], keep: Layout, *, worth: float = 0.7) -> list[PlannedDelta]:
    """Make deltas for every variant file of version `target` (index digest) from the same file of each version in `bases`.

    Newest base first. A delta larger than `worth` of what the whole file costs is thrown away, unless it is the best anyway.
    """
    raise NotImplementedError

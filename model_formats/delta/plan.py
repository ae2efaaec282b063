"""Which deltas to publish with a version: measured, against the last versions, and only where they save.

A delta hangs on the version's index as an OCI referrer, so a push carries it, and garbage collection drops it with the version.
It is not covered by any signature and need not be: its result is.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_formats.delta.encode import Level, encode
from model_formats.package.allowed_files import is_variant_file
from model_formats.package.image_layout import BlobReader, ImageLayout
from model_formats.package.oci import Descriptor
from model_formats.package.read import open_package
from model_formats.package.write import attach_file

__all__ = ["DELTA", "PlannedDelta", "plan_deltas"]

DELTA = "application/vnd.spokeshave.delta.v1"
"""Artifact type and media type of a delta."""
_BASE, _TARGET, _TARGET_SIZE = (f"dev.spokeshave.delta.{name}" for name in ("base", "target", "target-size"))
_SMALL = 8 * 1024
"""Files up to this size are sent whole."""


@dataclass(frozen=True, slots=True)
class PlannedDelta:
    """A delta that was made and kept in the layout, from one file to another by digest. (`DeltaOffer` on the wire.)"""

    base: str
    target: str
    delta: str
    size: int
    target_size: int


def plan_deltas(
    blobs: BlobReader, target: str, bases: Sequence[str], keep: ImageLayout, *, worth: float = 0.7, level: Level = "strong"
) -> list[PlannedDelta]:
    """Make deltas to the variant files of version `target` (index digest) from the same files of each version in `bases`.

    A delta larger than `worth` of the whole file is not kept: the file is sent whole. `keep` is the layout of the target version.
    """
    out = []
    for base, new in _pairs(blobs, target, bases):
        with tempfile.TemporaryDirectory(dir=keep.folder) as folder:
            file = Path(folder) / "delta"
            if encode(blobs.path(base.digest), blobs.path(new.digest), file, level=level) <= worth * new.size:
                out.append(_kept(keep, target, base, new, file))
    return out


def _pairs(blobs: BlobReader, target: str, bases: Sequence[str]) -> Iterator[tuple[Descriptor, Descriptor]]:
    older = [open_package(blobs, base).files for base in bases]
    for path, new in open_package(blobs, target).files.items():
        if not is_variant_file(path) or new.size <= _SMALL or not blobs.has(new.digest):
            continue
        seen = {new.digest}
        for files in older:
            base = files.get(path)
            if base is not None and base.digest not in seen and blobs.has(base.digest):
                seen.add(base.digest)
                yield base, new


def _kept(keep: ImageLayout, index: str, base: Descriptor, new: Descriptor, file: Path) -> PlannedDelta:
    notes = {_BASE: base.digest, _TARGET: new.digest, _TARGET_SIZE: str(new.size)}
    blob = attach_file(keep, index, DELTA, file, annotations=notes)
    return PlannedDelta(base.digest, new.digest, blob.digest, blob.size, new.size)

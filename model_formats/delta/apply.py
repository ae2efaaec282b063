"""Undo a delta. Everything in it is untrusted: sizes, offsets, streams; only the digest of the result counts."""

from pathlib import Path

from model_formats.delta.format import DeltaInvalid, Limits

__all__ = ["apply"]


def apply(base: Path, delta: Path, out: Path, expected: str, limits: Limits = Limits()) -> None:  # noqa: B008
    """Make the target file from `base` and `delta`, in bounded memory.

    `out` appears only when its digest is `expected`; on any error nothing is left. Raises DeltaInvalid.
    """
    raise DeltaInvalid("not yet")

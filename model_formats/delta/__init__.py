"""Deltas between the files of two versions, about a tenth of their size: `plan` chooses which, `encode` makes them at the hub,
`apply` undoes them at a spoke."""

from model_formats.delta.apply import apply
from model_formats.delta.format import DeltaInvalid, DeltaLimits

__all__ = ["DeltaInvalid", "DeltaLimits", "apply"]

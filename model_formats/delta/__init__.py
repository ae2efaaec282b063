"""From one version's file to the next in a tenth of its bytes: `encode` at the hub, `apply` at a spoke, `plan` for which."""

from model_formats.delta.apply import apply
from model_formats.delta.format import DeltaInvalid, DeltaLimits

__all__ = ["DeltaInvalid", "DeltaLimits", "apply"]

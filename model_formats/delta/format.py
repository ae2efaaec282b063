"""The delta file: a header, then segments, each small enough to be made and undone in bounded memory. (Being written.)"""

from dataclasses import dataclass

from model_formats.errors import RefusedError

__all__ = ["DeltaInvalid", "Limits"]


class DeltaInvalid(RefusedError):
    """A delta that is damaged, does not fit its base, claims too much, or does not give the signed file."""

    code = "delta_invalid"
    http = 422
    hint = "Nothing was kept; the whole file is fetched instead."


@dataclass(frozen=True, slots=True)
class Limits:
    """What a spoke lets a delta do. Bytes."""

    output: int = 64 << 30
    segment: int = 4 << 20
    window: int = 64 << 20

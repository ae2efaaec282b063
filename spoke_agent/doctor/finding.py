"""What a check found."""

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """An ailment, what is the matter, and what to do."""

    ailment: str
    issue: str
    remedy: str

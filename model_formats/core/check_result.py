"""What a check of a doctor found: the same shape for the hub's and the spoke's."""

from dataclasses import dataclass
from typing import Self

__all__ = ["CheckResult"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one check: its name, whether all is well, what was found, and what to do where it is not well."""

    check: str
    ok: bool
    found: str
    advice: str = ""

    @classmethod
    def failed(cls, check: str, found: str, advice: str) -> Self:
        """Something is the matter."""
        return cls(check, ok=False, found=found, advice=advice)

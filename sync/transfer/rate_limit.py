"""A token bucket for bytes per second, for either end of a transfer.

`wait` says how long to pause now. `spend` subtracts what was used afterwards and may go below zero, so that one block may be
larger than the bucket.
"""

from typing import Protocol

from sync.core.clock import Clock

__all__ = ["RateLimit", "TokenBucket", "Unlimited"]


class RateLimit(Protocol):
    """Decides when more may be transferred."""

    def wait(self) -> float:
        """Seconds to hold back now; 0 when more may flow."""

    def spend(self, size: int) -> None:
        """So many bytes flowed."""


class Unlimited:
    """As fast as it goes."""

    def wait(self) -> float:
        """Never holds back."""
        return 0.0

    def spend(self, size: int) -> None:
        """Counts nothing."""


class TokenBucket:
    """`rate` bytes a second on average, `burst` bytes at once. Thread-safe enough for one spender."""

    def __init__(self, rate: float, *, burst: float | None = None, clock: Clock) -> None:
        if rate <= 0:
            raise ValueError("a rate must be above zero; to stop a transfer, cancel it")
        self._rate, self._burst, self._clock = rate, burst if burst is not None else rate, clock
        self._tokens, self._then = self._burst, clock.monotonic()

    def wait(self) -> float:
        """Seconds until the bucket is out of debt."""
        now = self._clock.monotonic()
        # Unused time is saved up to one burst only; a quiet night must not allow a flood in the morning.
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
        self._then = now
        return max(0.0, -self._tokens / self._rate)

    def spend(self, size: int) -> None:
        """Take tokens, into debt when need be."""
        self.wait()
        self._tokens -= size

"""Retries with jitter, for named exceptions, with a limit on tries and on time.

@retrying(on=(httpx.TransportError,), tries=5, seconds=30)
def ask() -> bytes: ...
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tenacity

from sync.core.clock import Clock, SystemClock

__all__ = ["retrying"]

P = ParamSpec("P")
R = TypeVar("R")


def retrying(
    *,
    on: tuple[type[Exception], ...],
    tries: int = 5,
    seconds: float = 30.0,
    first: float = 0.2,
    longest: float = 5.0,
    clock: Clock | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that calls again on the named exceptions only.

    Waits `first` seconds, doubling to `longest`, with full jitter, so that a fleet does not come back as one herd. Gives up
    after `tries` calls or `seconds` in all, whichever is first, and raises the last exception itself.
    """
    return tenacity.retry(
        retry=tenacity.retry_if_exception_type(on),
        stop=tenacity.stop_after_attempt(tries) | tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_random_exponential(multiplier=first, max=longest),
        sleep=(clock or SystemClock()).sleep,
        reraise=True,
    )

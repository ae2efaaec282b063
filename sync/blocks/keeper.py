"""Blocks to the disk, a few behind the line: one thread receives and checks, another writes and syncs."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from sync.store import BlobWriter

__all__ = ["Keeper"]

_BEHIND = 8
"""Blocks that may wait for the disk: 1 MiB, and all that a kill -9 costs."""


class Keeper:
    """The one that writes, while this object lives; nobody else may write to the same writer meanwhile.

    `held`: bytes that are written or about to be.
    """

    def __init__(self, writer: BlobWriter) -> None:
        self._writer = writer
        self.held = writer.received
        self._thread = ThreadPoolExecutor(1, "block-keeper")
        self._behind: deque[Future[bool]] = deque()

    def put(self, index: int, data: bytes) -> None:
        """Write a checked block soon. Waits while too many are behind; raises what an earlier write raised."""
        self.held += len(data)
        self._behind.append(self._thread.submit(self._writer.write, index, data))
        while self._behind and (len(self._behind) > _BEHIND or self._behind[0].done()):
            self._behind.popleft().result()

    def settle(self) -> None:
        """Return when all is written; raises what a write raised."""
        while self._behind:
            self._behind.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.settle()

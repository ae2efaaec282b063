"""A spoke's half of the block transfer. Signatures first; the body follows within the hour."""

import threading
from collections.abc import Callable, Sequence

from sync.bus import Bus
from sync.types import SpokeId

__all__ = ["BlockReceiver", "Progress"]

Progress = Callable[[int, int], None]
"""Called now and then with (bytes held, bytes in all)."""


class BlockReceiver:
    """Receives blobs over the bus, block by block, resumable, in bounded memory."""

    def __init__(self, bus: Bus, zone: str, me: SpokeId, store: object) -> None: ...

    def receive(
        self,
        digest: str,
        size: int,
        hashes: Sequence[bytes] | None = None,
        *,
        cancel: threading.Event | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Bring one blob into the store; returns the bytes received now (not those kept from before).

        `hashes`: sha256 of each 128 KiB block, from the signed block list; None for a blob of one block, or before the list is
        known. Raises TransferCancelled, TransferStalled, BlobDamaged (the whole did not hash to its digest).
        """
        raise NotImplementedError

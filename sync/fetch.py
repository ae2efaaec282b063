"""Blobs over HTTPS by Range, into the same partial files as the block transfer. Signatures first; the body follows."""

import threading
from collections.abc import Callable, Sequence

import httpx

__all__ = ["fetch_blob"]


def fetch_blob(
    client: httpx.Client,
    url: str,
    digest: str,
    size: int,
    store: object,
    *,
    hashes: Sequence[bytes] | None = None,
    cancel: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Bring one blob into the store; returns the bytes received now. `url` is the blob's own address (`/v2/<name>/blobs/<digest>`).

    Raises TransferCancelled, TransferStalled, BlobDamaged, and BlobGone for a 404 (not tried again).
    """
    raise NotImplementedError

"""Blobs over the bus, block by block: ask by bitmap, one publish for all who ask, checked on arrival, resumable."""

from sync.transfer.errors import BlobGone, TransferCancelled, TransferFailed, TransferStalled
from sync.transfer.receiver import BlockReceiver, Patience, Progress
from sync.transfer.sender import BlobSender

__all__ = [
    "BlobGone",
    "BlobSender",
    "BlockReceiver",
    "Patience",
    "Progress",
    "TransferCancelled",
    "TransferFailed",
    "TransferStalled",
]

"""The hub's half of the block transfer. Signatures first; the body follows within the hour."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sync.bus import Bus

__all__ = ["BlobSender", "Blobs"]


class Blobs(Protocol):
    """Where blobs are (model_formats.package.BlobReader has the same shape)."""

    def has(self, digest: str) -> bool:
        """Whether the blob is here, whole."""

    def path(self, digest: str) -> Path:
        """Its file."""


class BlobSender:
    """Answers wants of spokes with blocks; many wants for one block cost one publish. One thread of its own."""

    def __init__(
        self,
        bus: Bus,
        blobs: Blobs,
        *,
        may: Callable[[str, str], bool] | None = None,
        bytes_per_second: float | None = None,
    ) -> None:
        """`may(zone, digest)` says whether a blob may go to a zone at all; None: all that `blobs` has."""

    def start(self) -> None:
        """Subscribe to wants and answer them until `stop`."""

    def stop(self) -> None:
        """Stop within a second."""

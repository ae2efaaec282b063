"""The protocols through which the update reaches the outside. The agent passes the real parts; tests pass fakes in memory."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from model_formats.core.errors import HubError
from model_formats.package.image_layout import BlobReader
from model_formats.package.oci import Descriptor
from spoke_agent.server_api.messages import ReconcileAnswer, StatsAnswer
from sync.protocol.messages import DesiredModel, Serving
from sync.store import Store

__all__ = ["FetchRequest", "Labels", "Release", "ServingProcess", "Transport", "TransportUnavailable", "Trust"]


class TransportUnavailable(HubError):
    """There is no way to the hub right now, and the file is not here."""

    code = "no_road"
    hint = "Bring it with `hub bundle export` and `spoke sideload apply`, or connect the spoke."


class Release(Protocol):
    """What the trusted metadata says of a version that may run here."""

    @property
    def index_size(self) -> int:
        """Size of the OCI index, bytes."""

    @property
    def signature(self) -> Descriptor:
        """The publisher's bundle."""


class Trust(Protocol):
    """The verifier, bound to this spoke's trusted metadata and identity."""

    def release(self, desired: DesiredModel, current: int | None) -> Release:
        """Whether this version may run here now. Raises TrustRefused (with `.reason`)."""

    def contents(self, blobs: BlobReader, desired: DesiredModel, current: int | None, variant: str) -> None:
        """Whether what is in the store is what was released and published. Raises TrustRefused, PackageTampered."""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One blob of a version, and where it goes."""

    desired: DesiredModel
    blob: Descriptor
    store: Store
    cancel: threading.Event
    hashes: Sequence[bytes] | None = None
    """Of its blocks, where the package tells them."""
    progress: Callable[[int, int], None] | None = None
    """Called with the bytes that are here and the bytes in all."""


class Transport(Protocol):
    """A way to fetch blobs."""

    def fetch(self, request: FetchRequest) -> int:
        """Bring one blob into the store, going on where an earlier try stopped; returns the bytes received now.

        Returns early, without the blob, when cancelled. Raises a retryable HubError when the transport is unavailable.
        """


class ServingProcess(Protocol):
    """The serving process, by its control socket. Calls raise ServerUnreachable."""

    def reconcile(self) -> ReconcileAnswer:
        """Follow `slots.json` now."""

    def stats(self) -> StatsAnswer:
        """Counts per model and role."""

    def serving(self) -> tuple[Serving, ...]:
        """What answers callers."""


class Labels(Protocol):
    """Accuracy on rows whose label came in (the encrypted data store)."""

    def labelled_accuracy(self, model: str, index: str, since: datetime | None = None) -> tuple[int, int]:
        """(rows labelled, of these right) that this version answered since then."""

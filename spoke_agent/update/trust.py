"""The verifier for this spoke: its trusted metadata, its zone and regime, and the cache of arriving metadata."""

import contextlib
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from model_formats.core.files import atomic_write
from model_formats.package import open_package
from model_formats.package.image_layout import BlobReader, read_blob
from model_formats.package.oci import SIGNATURE, Descriptor
from sync.core.clock import Clock
from sync.core.types import Regime
from sync.protocol.messages import DesiredModel
from sync.trust.client import TrustStore
from sync.trust.trusted_release import Released
from sync.trust.verifier import ReleaseTarget, verify_contents, verify_release

__all__ = ["MetadataCache", "ReleaseGrant", "SiteVerifier", "TrustedClock"]

MAX_FILE = 5_000_000
MAX_FILES = 1100


@dataclass(frozen=True, slots=True)
class ReleaseGrant:
    """A release, in the form that the update steps use."""

    target: ReleaseTarget

    @property
    def index_size(self) -> int:
        """Size of the OCI index, bytes."""
        return self.target.index_size

    @property
    def signature(self) -> Descriptor:
        """The publisher's bundle."""
        return Descriptor(self.target.signature, self.target.signature_size, SIGNATURE)


class SiteVerifier:
    """Answers of the verifier, at trusted time. Used from the loop and from job threads."""

    def __init__(self, trust: TrustStore, zone: str, regime: Regime) -> None:
        self._trust, self._zone, self._regime = trust, zone, regime
        self.lock = threading.RLock()
        """Held by whoever moves the trusted set."""

    @property
    def store(self) -> TrustStore:
        """The trusted set itself, for the loop."""
        return self._trust

    def released(self) -> Released:
        """What is trusted now. Raises MetadataIncomplete before the first update."""
        with self.lock:
            return self._trust.released()

    def release(self, desired: DesiredModel, current: int | None) -> ReleaseGrant:
        """See `ports.Trust`."""
        return ReleaseGrant(verify_release(desired, self.released(), self._zone, self._regime, current))

    def contents(self, blobs: BlobReader, desired: DesiredModel, current: int | None, variant: str) -> None:
        """See `ports.Trust`."""
        released = self.released()
        target = verify_release(desired, released, self._zone, self._regime, current)
        bundle = read_blob(blobs, target.signature, limit=target.signature_size, name="signature")
        package = open_package(blobs, desired.index)
        verify_contents(package, bundle, target, released, self._zone, self._regime, variant=variant)

    def update(self, mirror: "MetadataCache") -> Released:
        """Move the trusted set forward with what the mirror holds. Raises MetadataRefused or MetadataIncomplete."""
        with self.lock:
            return self._trust.update(mirror.get)


class TrustedClock:
    """The machine's clock, with trusted time for 'now': it dates what this spoke signs."""

    def __init__(self, clock: Clock, trust: TrustStore) -> None:
        self._clock, self._trust = clock, trust

    def now(self) -> datetime:
        """Trusted time."""
        return self._trust.now()

    def monotonic(self) -> float:
        """See `sync.core.clock.Clock`."""
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `sync.core.clock.Clock`."""
        self._clock.sleep(seconds)


class MetadataCache:
    """TUF files as they last arrived, on disk, so that a spoke can start without a network."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, bytes] = {}
        if folder.is_dir():
            self._files = {p.name: p.read_bytes() for p in folder.glob("*.json") if p.stat().st_size <= MAX_FILE}

    def put(self, name: str, data: bytes) -> bool:
        """Keep a file; False when it is the one already here, or too much. Whether it is to be believed is not decided here."""
        if self._files.get(name) == data or len(data) > MAX_FILE:
            return False
        if name not in self._files and len(self._files) >= MAX_FILES:
            return False
        self._files[name] = data
        with contextlib.suppress(OSError):  # best effort: it is retained at the broker, and the trusted set has its own file
            atomic_write(self._folder / name, data, mode=0o600)
        return True

    def get(self, name: str) -> bytes | None:
        """A file by TUF name."""
        return self._files.get(name)

"""Decides which blobs may go to which zone: those of released versions whose terms allow it, with signatures and deltas."""

import threading
from pathlib import Path

from hub.context import HubContext
from hub.store.versions import deltas_to, list_versions
from model_formats.package.read import closure

__all__ = ["ZoneBlobs", "needed"]

_MOMENT_S = 0.1


class ZoneBlobs:
    """The registry as BlobSender sees it, with the rule of zones. Looks again when versions have changed."""

    def __init__(self, hub: HubContext) -> None:
        self._hub = hub
        self._lock = threading.Lock()
        self._sent_for: set[str] = set()
        self._zones: dict[str, frozenset[str]] = {}
        self._known: object = None

    def has(self, digest: str) -> bool:
        """Whether the blob is here, whole. One that is kept elsewhere is sent for, and whoever wants it asks again.

        The first time a moment is waited, in which a page comes: it spares its spoke the second question.
        """
        if not self._hub.registry.has(digest):
            return False
        if self._hub.registry.ready(digest, 0.0 if digest in self._sent_for else _MOMENT_S):
            self._sent_for.discard(digest)
            return True
        self._sent_for.add(digest)
        return False

    def path(self, digest: str) -> Path:
        """Its file."""
        return self._hub.registry.path(digest)

    def may(self, zone: str, digest: str) -> bool:
        """Whether a blob may go to a zone; what no released version needs may go nowhere."""
        with self._lock:
            self._look()
            return zone in self._zones.get(digest, ())

    def _look(self) -> None:
        with self._hub.database.read() as db:
            versions = list_versions(db)
            offers = {v.ref: deltas_to(db, v.ref) for v in versions}
        if (versions, offers) == self._known:
            return
        zones: dict[str, frozenset[str]] = {}
        for version in versions:
            digests = {blob.digest for blob in closure(self._hub.registry, version.index)}
            for digest in digests | {version.signature} | {offer.delta for offer in offers[version.ref]}:
                zones[digest] = zones.get(digest, frozenset()) | frozenset(version.zones)
        self._zones, self._known = zones, (versions, offers)


def needed(hub: HubContext) -> set[str]:
    """What the collector must leave, tagged or not: index, signature and deltas of every released version."""
    with hub.database.read() as db:
        versions = list_versions(db)
        deltas = {offer.delta for version in versions for offer in deltas_to(db, version.ref)}
    return {digest for version in versions for digest in (version.index, version.signature)} | deltas

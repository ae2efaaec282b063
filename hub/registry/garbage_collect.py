"""Garbage collection: removes what no tag, no root of the caller and no referrer of those needs."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from hub.registry.errors import Unknown
from hub.registry.store import RegistryStore
from model_formats.core.types import hex_of
from model_formats.package.oci import INDEX, parse_index, parse_manifest

__all__ = ["Collected", "collect"]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed."""

    manifests: int
    blobs: int
    bytes: int


def collect(store: RegistryStore, keep: Iterable[str] = (), *, grace_s: float = 3600, dry_run: bool = False) -> Collected:
    """Remove what is not needed and older than `grace_s` (a push in progress has blobs that nothing lists yet).

    Needed are: tagged manifests, those in `keep` (what rollouts, spokes and deltas hold, by digest; plain blobs are allowed), all
    they list, and, again and again, the referrers of what is needed with all they list.
    """
    with store.lock():
        before = time.time() - grace_s
        wanted = {name: _needed(store, name, set(keep)) for name in store.repositories()}
        manifests = sum(_sweep_repository(store, name, needed, before, dry_run=dry_run) for name, needed in wanted.items())
        blobs, freed = _sweep_blobs(store, set().union(*wanted.values(), keep), before, dry_run=dry_run)
        _sweep_uploads(store, before, dry_run=dry_run)
    return Collected(manifests, blobs, freed)


def _needed(store: RegistryStore, repository: str, keep: set[str]) -> set[str]:
    waiting = [store.manifest(repository, tag).digest for tag in store.tags(repository)] + list(keep)
    found: set[str] = set()
    while waiting:
        digest = waiting.pop()
        if digest in found:
            continue
        found.add(digest)
        waiting += [held.digest for held in store.referrers(repository, digest)]
        waiting += _parts(store, repository, digest)
    return found


def _parts(store: RegistryStore, repository: str, digest: str) -> list[str]:
    try:
        held = store.manifest(repository, digest)
    except Unknown:
        return []  # a plain blob, or a manifest of another repository
    if held.media_type == INDEX:
        return [d.digest for d in parse_index(held.data).manifests]
    manifest = parse_manifest(held.data)
    return [manifest.config.digest, *(d.digest for d in manifest.layers)]


def _sweep_repository(store: RegistryStore, repository: str, needed: set[str], before: float, *, dry_run: bool) -> int:
    gone = [d for d in store.manifests(repository) if d not in needed and _is_old(store, d, before)]
    if dry_run:
        return len(gone)
    for digest in gone:
        store.forget(repository, digest)
    for marker in (store.repository(repository) / "_blobs").iterdir():
        digest = f"sha256:{marker.name}"
        if len(marker.name) == 64 and digest not in needed and _is_old(store, digest, before):
            marker.unlink()
    return len(gone)


def _sweep_blobs(store: RegistryStore, needed: set[str], before: float, *, dry_run: bool) -> tuple[int, int]:
    gone = [d for d, wanted in store.contents.known().items() if d not in needed and wanted < before]
    freed = sum(store.contents.size(digest) for digest in gone)
    for digest in gone if not dry_run else ():
        store.contents.forget(digest)
    return len(gone), freed


def _sweep_uploads(store: RegistryStore, before: float, *, dry_run: bool) -> None:
    for file in (store.folder / "uploads").iterdir():
        if not dry_run and file.stat().st_mtime < before:
            file.unlink(missing_ok=True)


def _is_old(store: RegistryStore, digest: str, before: float) -> bool:
    file = store.contents.folder / hex_of(digest)
    return not file.exists() or file.stat().st_mtime < before

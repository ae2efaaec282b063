"""Push and pull versions between a layout on disk and any OCI registry: ours, Harbor, zot, or a cloud's."""

from collections.abc import Callable

import httpx

from hub.registry.remote_client import RegistryDown, RemoteRepository
from model_formats.core.files import settle
from model_formats.package.image_layout import ImageLayout
from model_formats.package.oci import INDEX, MANIFEST, Descriptor, parse_index, parse_manifest
from model_formats.package.read import closure, missing, open_package

__all__ = ["RegistryDown", "pull", "push"]

Progress = Callable[[Descriptor], None]


def push(
    layout: ImageLayout,
    index: str,
    url: str,
    client: httpx.Client,
    *,
    repository: str | None = None,
    tag: str | None = None,
    progress: Progress = lambda _blob: None,
) -> str:
    """Send a whole version and everything that refers to it; returns its index digest.

    Repository and tag default to the model's name and version. Blobs that are there are not sent. Raises RegistryDown,
    RegistryRefused.
    """
    spec = open_package(layout, index).spec
    remote = RemoteRepository(client, url, repository or spec.model)
    blobs = closure(layout, index)
    for blob in blobs:
        if blob.media_type not in (INDEX, MANIFEST):
            remote.put_blob(layout.path(blob.digest), blob)
            progress(blob)
    for blob in reversed(blobs):
        if blob.media_type == MANIFEST:
            _put_manifest(layout, remote, blob, blob.digest)
    _put_manifest(layout, remote, blobs[0], tag or str(spec.version))
    _push_referrers(layout, index, remote)
    return index


def _push_referrers(layout: ImageLayout, index: str, remote: RemoteRepository) -> None:
    """Send what hangs on a version: signature, evidence, card, provenance."""
    for referrer in layout.referrers(index):
        manifest = parse_manifest(layout.path(referrer.digest).read_bytes())
        for part in (manifest.config, *manifest.layers):
            remote.put_blob(layout.path(part.digest), part.plain)
        _put_manifest(layout, remote, referrer, referrer.digest)


def _put_manifest(layout: ImageLayout, remote: RemoteRepository, blob: Descriptor, reference: str) -> None:
    remote.put_manifest(layout.path(blob.digest).read_bytes(), blob.media_type, reference)


def pull(
    layout: ImageLayout,
    url: str,
    client: httpx.Client,
    repository: str,
    reference: str,
    *,
    progress: Progress = lambda _blob: None,
) -> str:
    """Fetch a whole version (all variants) with its referrers into a layout; returns its index digest.

    Every blob is checked against its digest. Raises RegistryDown, RegistryRefused, PackageInvalid, PackageTampered.
    """
    remote = RemoteRepository(client, url, repository)
    data = remote.get_manifest(reference)
    index = layout.put(data)
    waiting = [*missing(layout, index, len(data))]
    while waiting:
        for blob in waiting:
            _fetch(layout, remote, blob)
            progress(blob)
        waiting = missing(layout, index, len(data))
    spec = open_package(layout, index).spec
    for variant in spec.variants:
        for blob in missing(layout, index, len(data), variant.name):
            _fetch(layout, remote, blob)
            progress(blob)
    layout.name(
        f"{spec.model}-{spec.version}", Descriptor(index, len(data), INDEX), artifact_type=parse_index(data).artifact_type
    )
    _pull_referrers(layout, index, remote)
    return index


def _pull_referrers(layout: ImageLayout, index: str, remote: RemoteRepository) -> None:
    for entry in remote.referrers(index):
        data = remote.get_manifest(entry.digest)
        manifest = parse_manifest(data)
        for part in (manifest.config, *manifest.layers):
            _fetch(layout, remote, part.plain)
        layout.add(Descriptor(layout.put(data), len(data), MANIFEST), artifact_type=manifest.artifact_type)


def _fetch(layout: ImageLayout, remote: RemoteRepository, blob: Descriptor) -> None:
    if layout.has(blob.digest):
        return
    if blob.media_type in (INDEX, MANIFEST):
        layout.put(remote.get_manifest(blob.digest))
        return
    file = layout.path(blob.digest)
    part = file.with_name(f".{file.name}.part")
    remote.download(blob, part)
    settle(part, file)

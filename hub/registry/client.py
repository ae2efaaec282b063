"""Push and pull versions between a layout on disk and any OCI registry: ours, Harbor, zot, or a cloud's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from hub.registry.errors import RegistryRefused
from model_formats.errors import HubError
from model_formats.layout import BlobReader, Layout, copy_checked
from model_formats.oci import INDEX, MANIFEST, Descriptor, parse_index, parse_manifest
from model_formats.opening import closure, missing, open_package
from model_formats.types import digest_of

__all__ = ["RegistryDown", "pull", "push"]

Progress = Callable[[Descriptor], None]


class RegistryDown(HubError):
    """The registry cannot be reached, or failed."""

    code = "registry_down"
    hint = "Is the address right, and is the registry up? A push can be repeated; what is there already is not sent again."


def push(
    layout: Layout,
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
    remote = _Remote(client, url, repository or spec.model)
    blobs = closure(layout, index)
    for blob in blobs:
        if blob.media_type not in (INDEX, MANIFEST):
            remote.put_blob(layout, blob)
            progress(blob)
    for blob in reversed(blobs):
        if blob.media_type == MANIFEST:
            remote.put_manifest(layout, blob, blob.digest)
    remote.put_manifest(layout, blobs[0], tag or str(spec.version))
    push_referrers(layout, index, remote)
    return index


def push_referrers(layout: Layout, index: str, remote: "_Remote") -> None:
    """Send what hangs on a version: signature, evidence, card, provenance."""
    for referrer in layout.referrers(index):
        manifest = parse_manifest(layout.path(referrer.digest).read_bytes())
        for part in (manifest.config, *manifest.layers):
            remote.put_blob(layout, part.plain)
        remote.put_manifest(layout, referrer, referrer.digest)


def pull(
    layout: Layout, url: str, client: httpx.Client, repository: str, reference: str, *, progress: Progress = lambda _blob: None
) -> str:
    """Fetch a whole version (all variants) with its referrers into a layout; returns its index digest.

    Every blob is checked against its digest. Raises RegistryDown, RegistryRefused, PackageInvalid, PackageTampered.
    """
    remote = _Remote(client, url, repository)
    data = remote.get_manifest(reference)
    index = layout.put(data)
    waiting = [*missing(layout, index, len(data))]
    while waiting:
        for blob in waiting:
            remote.fetch(layout, blob)
            progress(blob)
        waiting = missing(layout, index, len(data))
    spec = open_package(layout, index).spec
    for variant in spec.variants:
        for blob in missing(layout, index, len(data), variant.name):
            remote.fetch(layout, blob)
            progress(blob)
    layout.name(
        f"{spec.model}-{spec.version}", Descriptor(index, len(data), INDEX), artifact_type=parse_index(data).artifact_type
    )
    _pull_referrers(layout, index, remote)
    return index


def _pull_referrers(layout: Layout, index: str, remote: "_Remote") -> None:
    for entry in remote.referrers(index):
        data = remote.get_manifest(entry.digest)
        manifest = parse_manifest(data)
        for part in (manifest.config, *manifest.layers):
            remote.fetch(layout, part.plain)
        layout.add(Descriptor(layout.put(data), len(data), MANIFEST), artifact_type=manifest.artifact_type)


class _Remote:
    """One repository at one registry."""

    def __init__(self, client: httpx.Client, url: str, repository: str) -> None:
        self._client = client
        self._base = f"{url.rstrip('/')}/v2/{repository}"

    def put_blob(self, blobs: BlobReader, blob: Descriptor) -> None:
        if self._ask("HEAD", f"/blobs/{blob.digest}", expect=(200, 404)).status_code == 200:
            return
        started = self._ask("POST", "/blobs/uploads/", expect=(202,))
        where = httpx.URL(urljoin(str(started.url), started.headers["Location"])).copy_merge_params({"digest": blob.digest})
        headers = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
        self._ask("PUT", where, content=_chunks(blobs.path(blob.digest)), headers=headers, expect=(201,))

    def put_manifest(self, blobs: BlobReader, blob: Descriptor, reference: str) -> None:
        data = blobs.path(blob.digest).read_bytes()
        self._ask("PUT", f"/manifests/{reference}", content=data, headers={"Content-Type": blob.media_type}, expect=(201,))

    def get_manifest(self, reference: str) -> bytes:
        answer = self._ask("GET", f"/manifests/{reference}", headers={"Accept": f"{INDEX}, {MANIFEST}"}, expect=(200,))
        if reference.startswith("sha256:") and digest_of(answer.content) != reference:
            raise RegistryDown(f"{reference}: the registry gave other bytes")
        return answer.content

    def referrers(self, digest: str) -> list[Descriptor]:
        answer = self._ask("GET", f"/referrers/{digest}", expect=(200, 404))
        return [d.plain for d in parse_index(answer.content).manifests] if answer.status_code == 200 else []

    def fetch(self, layout: Layout, blob: Descriptor) -> None:
        if layout.has(blob.digest):
            return
        if blob.media_type in (INDEX, MANIFEST):
            layout.put(self.get_manifest(blob.digest))
            return
        with self._client.stream("GET", f"{self._base}/blobs/{blob.digest}", follow_redirects=True) as answer:
            if answer.status_code != 200:
                raise RegistryDown(f"{blob.path or blob.digest}: the registry answered {answer.status_code}")
            with layout.writing(blob) as out:
                copy_checked(_Reader(answer.iter_bytes()), out, blob)

    def _ask(self, method: str, where: str | httpx.URL, *, expect: tuple[int, ...], **kwargs: Any) -> httpx.Response:
        url = f"{self._base}{where}" if isinstance(where, str) else where
        try:
            answer = self._client.request(method, url, **kwargs)
        except httpx.HTTPError as e:
            raise RegistryDown(f"{method} {url}: {e}") from e
        if answer.status_code in expect:
            return answer
        if answer.status_code < 500:
            raise RegistryRefused(f"{method} {url}: {answer.status_code} {answer.text[:300]}")
        raise RegistryDown(f"{method} {url}: {answer.status_code}")


class _Reader:
    """Chunks of a response as something to `read`."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, _size: int = -1) -> bytes:
        """The next chunk; empty at the end."""
        return next(self._chunks, b"")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk

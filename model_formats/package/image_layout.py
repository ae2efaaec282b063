"""Blobs by digest: the reader that every store implements, and the OCI image layout on disk.

Source: image specification 1.1, image-layout.md.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from msgspec import to_builtins

from model_formats.core.errors import RefusedError
from model_formats.core.file_lock import FileLock
from model_formats.core.files import atomic_write
from model_formats.core.types import digest_of, hex_of
from model_formats.package.oci import (
    INDEX,
    MAX_JSON,
    Descriptor,
    OciDescriptor,
    canonical,
    descriptor_json,
    parse_index,
    parse_manifest,
)

__all__ = ["BlobReader", "ImageLayout", "PackageIncomplete", "PackageTampered", "copy_checked", "read_blob"]

REF_NAME = "org.opencontainers.image.ref.name"


class PackageTampered(RefusedError):
    """Bytes are not what their digest says."""

    code = "package_tampered"
    http = 422
    hint = "Fetch the package again; when it happens twice, tell the hub's operator: somebody or some disk changes files."


class PackageIncomplete(RefusedError):
    """A file that the package lists is not here."""

    code = "package_incomplete"
    http = 404
    hint = "Fetch the package again, with all its files."


class BlobReader(Protocol):
    """Anything that holds blobs as files named by digest: a layout, a spoke's store, the registry."""

    def has(self, digest: str) -> bool:
        """Whether the whole blob is here."""

    def path(self, digest: str) -> Path:
        """The file of a blob. It may be read, never written."""


def read_blob(blobs: BlobReader, digest: str, *, limit: int = MAX_JSON, name: str = "") -> bytes:
    """A small blob's bytes, bounded and checked. Raises PackageIncomplete or PackageTampered."""
    what = name or digest
    if not blobs.has(digest):
        raise PackageIncomplete(f"{what}: {digest} is not here")
    with blobs.path(digest).open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise PackageTampered(f"{what}: more than the {limit} bytes allowed")
    if digest_of(data) != digest:
        raise PackageTampered(f"{what}: its bytes are not {digest}")
    return data


class Readable(Protocol):
    """Something to read from, until it gives nothing."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`; empty at the end."""


def copy_checked(source: Readable, out: BinaryIO, blob: Descriptor) -> None:
    """Copy a blob while hashing it. Raises PackageTampered on a wrong size or digest."""
    sha, left = hashlib.sha256(), blob.size
    while chunk := source.read(1 << 20):
        left -= len(chunk)
        if left < 0:
            break
        sha.update(chunk)
        out.write(chunk)
    if left != 0 or "sha256:" + sha.hexdigest() != blob.digest:
        raise PackageTampered(f"{blob.path or blob.digest}: its bytes are not {blob.digest}")


class ImageLayout:
    """An OCI image layout folder: `oci-layout`, `index.json`, `blobs/sha256/<hex>`. skopeo and oras read it as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        if not (folder / "oci-layout").exists():
            atomic_write(folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        if not (folder / "index.json").exists():
            self._write_index([])

    def has(self, digest: str) -> bool:
        """Whether the whole blob is here."""
        return self.path(digest).is_file()

    def path(self, digest: str) -> Path:
        """The file of a blob."""
        return self.folder / "blobs" / "sha256" / hex_of(digest)

    def put(self, data: bytes) -> str:
        """Keep some bytes; returns their digest."""
        digest = digest_of(data)
        if not self.has(digest):
            atomic_write(self.path(digest), data)
        return digest

    def put_file(self, source: Path) -> tuple[str, int]:
        """Keep a copy of a file; returns its digest and size. Streams, so memory does not grow with the file."""
        sha, size = hashlib.sha256(), 0
        beside = self.folder / "blobs" / f".{secrets.token_hex(8)}.tmp"
        try:
            with source.open("rb") as file, beside.open("xb") as out:
                while chunk := file.read(1 << 20):
                    sha.update(chunk)
                    size += len(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            digest = "sha256:" + sha.hexdigest()
            beside.replace(self.path(digest))
        finally:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
        return digest, size

    def entries(self) -> list[OciDescriptor]:
        """What stands in `index.json`: versions (with a name) and referrers."""
        return list(parse_index((self.folder / "index.json").read_bytes()).manifests)

    def name(self, name: str, blob: Descriptor, *, artifact_type: str | None = None) -> None:
        """List a manifest or index under a name; an older one of that name is unlisted (its blobs stay)."""
        with self._alone():
            kept = [_json(d) for d in self.entries() if d.annotations.get(REF_NAME) != name and d.digest != blob.digest]
            self._write_index([*kept, descriptor_json(blob, artifact_type=artifact_type, annotations={REF_NAME: name})])

    def add(self, blob: Descriptor, *, artifact_type: str | None = None) -> None:
        """List a manifest without a name (a referrer)."""
        with self._alone():
            kept = [_json(d) for d in self.entries() if d.digest != blob.digest]
            self._write_index([*kept, descriptor_json(blob, artifact_type=artifact_type)])

    def named(self, name: str) -> str | None:
        """The digest that stands under a name."""
        return next((d.digest for d in self.entries() if d.annotations.get(REF_NAME) == name), None)

    def referrers(self, subject: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Manifests that refer to `subject`, in the order they were added."""
        found = []
        for listed in self.entries():
            if listed.media_type == INDEX:
                continue
            manifest = parse_manifest(read_blob(self, listed.digest))
            if manifest.subject and manifest.subject.digest == subject and artifact_type in (None, manifest.artifact_type):
                found.append(listed.plain)
        return found

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer of `index.json` at a time, over threads and processes."""
        with FileLock(self.folder / "oci-layout"):
            yield

    def _write_index(self, manifests: list[dict[str, Any]]) -> None:
        atomic_write(self.folder / "index.json", canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}))


def _json(listed: OciDescriptor) -> dict[str, Any]:
    return {key: value for key, value in to_builtins(listed).items() if value not in (None, {})}

"""What the registry knows: small marker files for who has what. The content lies in `blob_backend.py`, here or elsewhere.

    blobs/sha256/<hex>                          content, or what of it is near
    repositories/<name>/_blobs/<hex>            this repository may serve the blob
    repositories/<name>/_manifests/<hex>        its media type
    repositories/<name>/_tags/<tag>             a digest
    repositories/<name>/_referrers/<hex>/<hex>  subject -> manifest that refers to it
    uploads/<id>                                a push in progress

A name on disk is a change made: no database, and any file can be read with `cat`. Changes to manifests and garbage collection
take one lock, so that a collector never meets half a push.
"""

import contextlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hub.registry.blob_backend import Contents, FolderContents
from hub.registry.blob_backend import checked_hex as _hex
from hub.registry.errors import Unacceptable, Unknown
from model_formats.core.file_lock import FileLock
from model_formats.core.files import atomic_write
from model_formats.core.types import DIGEST_PATTERN, digest_of
from model_formats.package.image_layout import read_blob
from model_formats.package.oci import (
    INDEX,
    MANIFEST,
    MAX_JSON,
    Descriptor,
    Index,
    Manifest,
    PackageInvalid,
    parse_index,
    parse_manifest,
)

__all__ = ["StoredManifest", "RegistryStore"]

_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(DIGEST_PATTERN)


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest or index as pushed."""

    digest: str
    media_type: str
    data: bytes


class RegistryStore:
    """A folder of repositories. It is a BlobReader over all its blobs; what one repository may serve is asked for by name."""

    def __init__(self, folder: Path, contents: Contents | None = None) -> None:
        """`contents`: where the bytes are kept; None: in this folder."""
        self.folder = folder
        for part in ("repositories", "uploads"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self.contents: Contents = contents or FolderContents(folder / "blobs" / "sha256")

    # ---- blobs

    def has(self, digest: str) -> bool:
        """Whether any repository holds the blob."""
        return self.contents.has(digest)

    def path(self, digest: str) -> Path:
        """The file of a blob; where its bytes are elsewhere, this waits for them."""
        return self.contents.path(digest)

    def ready(self, digest: str, wait_s: float = 0.0) -> bool:
        """Whether `path` would answer at once, now or within `wait_s` seconds."""
        return self.contents.has(digest) and self.contents.ready(digest, wait_s)

    def holds(self, repository: str, digest: str) -> bool:
        """Whether this repository may serve the blob."""
        return (self.repository(repository) / "_blobs" / _hex(digest)).is_file() and self.has(digest)

    def put_blob(self, repository: str, data: bytes) -> str:
        """Keep some bytes for a repository; returns their digest."""
        digest = digest_of(data)
        if self.has(digest):
            self.link(repository, digest)
        else:
            file = self.folder / "uploads" / f"{secrets.token_hex(16)}.put"
            file.write_bytes(data)
            self.take(repository, digest, file)
        return digest

    def take(self, repository: str, digest: str, file: Path) -> None:
        """Keep a file whose bytes were checked as a blob of a repository; it is moved away."""
        self.contents.take(repository, digest, file)
        self._mark(repository, digest)

    def link(self, repository: str, digest: str) -> None:
        """Let a repository serve a blob that is here. Raises Unknown."""
        self.contents.link(repository, digest)
        self._mark(repository, digest)

    def confirmed_size(self, repository: str, digest: str) -> int:
        """Bytes of a blob, for a pusher who then sends nothing. Raises Unknown where it has to be sent (again)."""
        # Where the bytes are at another registry, ask there before the pusher skips the blob.
        if not (self.holds(repository, digest) and self.contents.confirm(repository, digest)):
            raise Unknown(f"{repository}: has no blob {digest}", oci="BLOB_UNKNOWN")
        return self.contents.size(digest)

    def delete_blob(self, repository: str, digest: str) -> None:
        """Stop serving a blob in a repository; the collector removes the bytes. Raises Unknown."""
        _unlink(self.repository(repository) / "_blobs" / _hex(digest), f"{digest}: not in {repository}", "BLOB_UNKNOWN")

    def close(self) -> None:
        """Let go of connections to where the bytes are kept."""
        self.contents.close()

    # ---- manifests

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> tuple[str, str | None]:
        """Keep a manifest or index under a tag or its digest; returns its digest and its subject's, if it has one.

        Everything it lists must be here already, except the subject. Raises Unacceptable, Unknown.
        """
        digest = digest_of(data)
        if reference.startswith("sha256:") and reference != digest:
            raise Unacceptable(f"{reference}: the bytes are {digest}", oci="DIGEST_INVALID")
        parsed = _parse(media_type, data)
        # From the check of the parts to the last marker: the collector must not remove a part in between.
        with self.lock():
            self._require_parts(repository, parsed)
            if not reference.startswith("sha256:"):
                _require_tag(reference)
            self.contents.take_manifest(repository, reference, media_type, digest, data)
            self._mark(repository, digest)
            # The content is kept by now; a crash before this line leaves bytes that no one lists, which the collector removes.
            atomic_write(self._manifest_file(repository, digest), media_type.encode())
            if parsed.subject:
                atomic_write(self._referrer_file(repository, parsed.subject.digest, digest), b"")
            if not reference.startswith("sha256:"):
                atomic_write(self._tags(repository) / reference, digest.encode())
        return digest, parsed.subject.digest if parsed.subject else None

    def manifest(self, repository: str, reference: str) -> StoredManifest:
        """A manifest by tag or digest. Raises Unknown."""
        digest = reference if _DIGEST.match(reference) else self._tagged(repository, reference)
        marker = self._manifest_file(repository, digest)
        if not marker.is_file():
            raise Unknown(f"{repository}: no manifest {reference}", oci="MANIFEST_UNKNOWN")
        return StoredManifest(digest, marker.read_text(), read_blob(self, digest))

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Delete a tag, or a manifest by digest with all its tags. Referrers of it become orphans; the collector takes them."""
        with self.lock():
            if not reference.startswith("sha256:"):
                _unlink(self._tags(repository) / reference, f"{repository}: no tag {reference}", "MANIFEST_UNKNOWN")
                return
            self.forget(repository, reference)

    def tags(self, repository: str) -> list[str]:
        """All tags, sorted. Raises Unknown for a repository without any manifest."""
        if not self.repository(repository).is_dir():
            raise Unknown(f"{repository}: no such repository")
        folder = self._tags(repository)
        return sorted((p.name for p in folder.iterdir() if _TAG.fullmatch(p.name)), key=str.lower) if folder.is_dir() else []

    def referrers(self, repository: str, subject: str) -> list[StoredManifest]:
        """Manifests that refer to a digest, whether that digest is here or not."""
        folder = self.repository(repository) / "_referrers" / _hex(subject)
        names = sorted(p.name for p in folder.iterdir() if len(p.name) == 64) if folder.is_dir() else []
        return [self.manifest(repository, f"sha256:{name}") for name in names]

    def repositories(self) -> list[str]:
        """All repositories, sorted."""
        root = self.folder / "repositories"
        return sorted(p.parent.relative_to(root).as_posix() for p in root.rglob("_blobs"))

    def manifests(self, repository: str) -> list[str]:
        """Digests of all manifests of a repository."""
        folder = self.repository(repository) / "_manifests"
        return sorted(f"sha256:{p.name}" for p in folder.iterdir() if len(p.name) == 64) if folder.is_dir() else []

    # ---- inside

    def repository(self, name: str) -> Path:
        """The folder of a repository. Raises Unacceptable for names outside the specification's grammar."""
        if not _NAME.fullmatch(name) or len(name) > 255:
            raise Unacceptable(f"{name!r} is not a repository name", oci="NAME_INVALID")
        return self.folder / "repositories" / name

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One writer at a time, over threads and processes."""
        with FileLock(self.folder / ".lock"):
            yield

    def forget(self, repository: str, digest: str) -> None:
        """Unlist a manifest with its tags and its place among referrers (the caller holds the lock). Raises Unknown."""
        held = self.manifest(repository, digest)
        for tag in self.tags(repository):
            if self._tagged(repository, tag) == held.digest:
                (self._tags(repository) / tag).unlink()
        parsed = _parse(held.media_type, held.data)
        if parsed.subject:
            self._referrer_file(repository, parsed.subject.digest, held.digest).unlink(missing_ok=True)
        self.contents.drop_manifest(repository, held.digest, parsed.subject.digest if parsed.subject else None)
        self._manifest_file(repository, held.digest).unlink()
        (self.repository(repository) / "_blobs" / _hex(held.digest)).unlink(missing_ok=True)

    def _require_parts(self, repository: str, parsed: Manifest | Index) -> None:
        parts: list[Descriptor] = []
        if isinstance(parsed, Index):
            parts = [d.plain for d in parsed.manifests]
        else:
            parts = [parsed.config.plain, *(d.plain for d in parsed.layers)]
        for part in parts:
            if not self.holds(repository, part.digest):
                raise Unknown(f"{repository}: {part.digest} must be pushed first", oci="MANIFEST_BLOB_UNKNOWN")
            if self.contents.size(part.digest) != part.size:
                raise Unacceptable(f"{part.digest}: the manifest says {part.size} bytes, it has another size", oci="SIZE_INVALID")

    def _mark(self, repository: str, digest: str) -> None:
        atomic_write(self.repository(repository) / "_blobs" / _hex(digest), b"")

    def _tagged(self, repository: str, tag: str) -> str:
        file = self._tags(repository) / tag
        if not _TAG.fullmatch(tag) or not file.is_file():
            raise Unknown(f"{repository}: no tag {tag!r}", oci="MANIFEST_UNKNOWN")
        return file.read_text()

    def _tags(self, repository: str) -> Path:
        return self.repository(repository) / "_tags"

    def _manifest_file(self, repository: str, digest: str) -> Path:
        return self.repository(repository) / "_manifests" / _hex(digest)

    def _referrer_file(self, repository: str, subject: str, digest: str) -> Path:
        return self.repository(repository) / "_referrers" / _hex(subject) / _hex(digest)


def _parse(media_type: str, data: bytes) -> Manifest | Index:
    if len(data) > MAX_JSON:
        raise Unacceptable(f"manifest: {len(data)} bytes, more than the {MAX_JSON} allowed", oci="SIZE_INVALID")
    try:
        if media_type == INDEX:
            return parse_index(data)
        if media_type == MANIFEST:
            return parse_manifest(data)
    except PackageInvalid as e:
        raise Unacceptable(e.message) from e
    raise Unacceptable(f"media type {media_type!r}: only OCI manifests and indexes are kept here")


def _require_tag(tag: str) -> None:
    if not _TAG.fullmatch(tag):
        raise Unacceptable(f"{tag!r} is not a tag", oci="TAG_INVALID")


def _unlink(path: Path, message: str, oci: str) -> None:
    try:
        path.unlink()
    except FileNotFoundError as e:
        raise Unknown(message, oci=oci) from e

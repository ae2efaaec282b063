"""The interface between the registry's records (store.py) and the place where blobs are kept.

`FolderContents` keeps them in the hub's own folder; `remote_backend.ExternalContents` at another OCI registry, with a cache
here. Both are held to one contract suite (tests/hub/registry/test_contents_are_kept_here_or_elsewhere.py).
"""

from pathlib import Path
from typing import Protocol

from hub.registry.errors import Unacceptable, Unknown
from model_formats.core.files import atomic_write, settle
from model_formats.core.types import hex_of
from model_formats.package.image_layout import BlobReader

__all__ = ["Contents", "FolderContents", "checked_hex"]


class Contents(BlobReader, Protocol):
    """Blobs and manifests by digest. What `has` says can be had; `path` may have to wait for it."""

    folder: Path
    """Files of blobs, named by the hex of their digest: all of them, or those that are near."""

    def size(self, digest: str) -> int:
        """Bytes of a blob, without waiting. Raises Unknown."""

    def ready(self, digest: str, wait_s: float = 0.0) -> bool:
        """Whether `path` would answer at once; if not, it is being brought, and waited for up to `wait_s` seconds.

        Raises what `path` raises, when that is known within the wait.
        """

    def confirm(self, repository: str, digest: str) -> bool:
        """Whether the blob is really where its bytes are kept: what a pusher asks before it sends nothing."""

    def take(self, repository: str, digest: str, file: Path) -> None:
        """Keep a blob for a repository; `file` holds its checked bytes and is moved away."""

    def link(self, repository: str, digest: str) -> None:
        """Let a repository have a blob that is here. Raises Unknown."""

    def take_manifest(self, repository: str, reference: str, media_type: str, digest: str, data: bytes) -> None:
        """Keep a manifest that was checked, under a tag or its digest."""

    def drop_manifest(self, repository: str, digest: str, subject: str | None) -> None:
        """A repository has no use for a manifest any more."""

    def forget(self, digest: str) -> None:
        """Nobody needs a blob any more: what of it is here goes."""

    def known(self) -> dict[str, float]:
        """Digest -> when it was last wanted (UTC seconds), of all that is here or known to be elsewhere."""

    def is_copy(self, file: Path) -> bool:
        """Whether a file under the registry's folder can be had again from elsewhere: a backup leaves it out."""

    def close(self) -> None:
        """Let go of connections."""


class FolderContents:
    """Everything in one folder, once for all repositories."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, digest: str) -> bool:
        """See Contents."""
        return self.path(digest).is_file()

    def path(self, digest: str) -> Path:
        """See Contents."""
        return self.folder / checked_hex(digest)

    def size(self, digest: str) -> int:
        """See Contents."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as e:
            raise Unknown(f"{digest}: not here", oci="BLOB_UNKNOWN") from e

    def ready(self, digest: str, wait_s: float = 0.0) -> bool:
        """See Contents."""
        return self.has(digest)

    def confirm(self, repository: str, digest: str) -> bool:
        """See Contents."""
        return self.has(digest)

    def take(self, repository: str, digest: str, file: Path) -> None:
        """See Contents."""
        settle(file, self.path(digest))

    def link(self, repository: str, digest: str) -> None:
        """See Contents. The file is touched, so that the collector knows it is wanted."""
        self.size(digest)
        self.path(digest).touch()

    def take_manifest(self, repository: str, reference: str, media_type: str, digest: str, data: bytes) -> None:
        """See Contents."""
        atomic_write(self.path(digest), data)

    def drop_manifest(self, repository: str, digest: str, subject: str | None) -> None:
        """See Contents. Its bytes go when nothing needs them (`forget`)."""

    def forget(self, digest: str) -> None:
        """See Contents."""
        self.path(digest).unlink(missing_ok=True)

    def known(self) -> dict[str, float]:
        """See Contents."""
        return {f"sha256:{file.name}": file.stat().st_mtime for file in self.folder.iterdir() if len(file.name) == 64}

    def is_copy(self, file: Path) -> bool:
        """See Contents."""
        return False

    def close(self) -> None:
        """See Contents. There is none."""


def checked_hex(digest: str) -> str:
    """The hex of a digest. Raises Unacceptable, so that no digest becomes a path unseen."""
    try:
        return hex_of(digest)
    except ValueError as e:
        raise Unacceptable(str(e), oci="DIGEST_INVALID") from e

"""Pushes in progress: a file each, that grows chunk by chunk and becomes a blob when its digest is right."""

import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from anyio import to_thread

from hub.registry.blob_backend import checked_hex
from hub.registry.errors import OutOfOrder, Unacceptable, Unknown
from hub.registry.store import RegistryStore
from model_formats.core.types import digest_of_file

__all__ = ["Uploads"]

_ID = re.compile(r"[0-9a-f]{32}")
_PIECE_BYTES = 1 << 20


class Uploads:
    """Upload sessions of a registry. A session belongs to the repository it was started in."""

    def __init__(self, store: RegistryStore, *, max_bytes: int = 64 << 30) -> None:
        self._store = store
        self._folder = store.folder / "uploads"
        self._max_bytes = max_bytes

    def start(self, repository: str) -> str:
        """A new session."""
        self._store.repository(repository)
        session = secrets.token_hex(16)
        self._file(repository, session).touch(exist_ok=False)
        return session

    def offset(self, repository: str, session: str) -> int:
        """Bytes received so far. Raises Unknown."""
        try:
            return self._file(repository, session).stat().st_size
        except FileNotFoundError as e:
            raise Unknown(f"{repository}: no upload {session!r}", oci="BLOB_UPLOAD_UNKNOWN") from e

    async def append(self, repository: str, session: str, stream: AsyncIterator[bytes], start: int | None = None) -> int:
        """Add a chunk; returns the new offset. Raises OutOfOrder when `start` is not where the session stands."""
        offset = self.offset(repository, session)
        if start is not None and start != offset:
            raise OutOfOrder(f"chunk starts at {start}, the upload stands at {offset}", offset)
        with self._file(repository, session).open("ab") as file:
            async for piece in _pieces(stream):
                offset += len(piece)
                if offset > self._max_bytes:
                    raise Unacceptable(f"more than the {self._max_bytes} bytes allowed", oci="SIZE_INVALID")
                await to_thread.run_sync(file.write, piece)
        return offset

    def finish(self, repository: str, session: str, digest: str) -> None:
        """Make the session a blob of the repository. Raises Unacceptable when its bytes are not `digest`, and drops them."""
        file = self._file(repository, session)
        self.offset(repository, session)
        checked_hex(digest)
        if digest_of_file(file) != digest:
            file.unlink()
            raise Unacceptable(f"{digest}: the bytes received are something else", oci="DIGEST_INVALID")
        self._store.take(repository, digest, file)

    def cancel(self, repository: str, session: str) -> None:
        """Throw a session away. Raises Unknown."""
        self.offset(repository, session)
        self._file(repository, session).unlink()

    def _file(self, repository: str, session: str) -> Path:
        if not _ID.fullmatch(session):
            raise Unknown(f"{repository}: no upload {session!r}", oci="BLOB_UPLOAD_UNKNOWN")
        return self._folder / f"{repository.replace('/', '%')}.{session}"


async def _pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about a mebibyte, so that a thread is asked once for each and not for each packet."""
    waiting = bytearray()
    async for chunk in stream:
        waiting += chunk
        if len(waiting) >= _PIECE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)

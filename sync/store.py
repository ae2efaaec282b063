"""Content-addressed files on a spoke: an OCI image layout folder whose blobs may arrive in pieces, over days, through power cuts.

A partial blob is two files: `partial/<hex>.part`, as long as the blob will be, and `partial/<hex>.map`, which tells what
blocks are on disk. The map is written only after the blocks it speaks of were synced, so it never claims too much; what a power
cut costs is what came after the last save (`SAVE_BYTES`). A blob gets its name only when all of its bytes hash to it.

`BlobStore` (disk) and `MemoryStore` are both a `Store`, held to one contract suite (tests/contract/test_store.py), and both are a
`model_formats.layout.BlobReader`.
"""

import contextlib
import errno
import os
import shutil
import struct
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Protocol, Self

from model_formats.errors import DeviceError
from model_formats.layout import PackageTampered
from model_formats.types import digest_of, digest_of_file, hex_of
from sync.files import atomic_write, fsync_dir

__all__ = ["BLOCK_SIZE", "SAVE_BYTES", "BlobStore", "BlobWriter", "DiskFailed", "DiskFull", "MemoryStore", "Store", "disk_errors"]

BLOCK_SIZE = 128 * 1024
SAVE_BYTES = 2 * 1024 * 1024
_HEADER = struct.Struct(">4sIQ")
_MAGIC = b"SSP1"


class DiskFull(DeviceError):
    """There is no room for what should be stored."""

    code = "disk_full"
    hint = "Free some space (`spoke doctor` tells how much is needed); the transfer goes on from where it stopped."


class DiskFailed(DeviceError):
    """The disk answered with an error."""

    code = "disk_failed"
    hint = "Check the disk (dmesg, smartctl); what is served stays served."


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours, at the seam to the disk."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left for {path.name} in {path.parent}") from e
        raise DiskFailed(f"{path}: {e.strerror or e}") from e


class BlobWriter(Protocol):
    """One blob on its way in, in blocks of `block_size` bytes (the last one may be shorter), in any order.

    A context manager: leaving it saves what is there and closes. Not for use by several threads at once.
    """

    digest: str
    size: int
    block_size: int

    @property
    def blocks(self) -> int:
        """How many blocks the blob has."""

    @property
    def received(self) -> int:
        """Bytes that are here."""

    def has(self, index: int) -> bool:
        """Whether a block is here."""

    def missing(self) -> list[int]:
        """Indices of the blocks that are not here, ascending."""

    def write(self, index: int, data: bytes) -> bool:
        """Put a block in its place; False when it was here already. Raises ValueError on a wrong index or length.

        The caller has checked the block's hash where one is known; here nothing is believed until `commit`.
        """

    def save(self) -> None:
        """Make all that was written durable, and remember it."""

    def commit(self) -> None:
        """Give the blob its name. Raises PackageTampered (and forgets all blocks) when the whole does not hash to `digest`."""

    def discard(self) -> None:
        """Forget all blocks."""

    def close(self) -> None:
        """Save and close."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Store(Protocol):
    """Blobs by digest."""

    def has(self, digest: str) -> bool:
        """Whether the whole blob is here."""

    def path(self, digest: str) -> Path:
        """The file of a blob that is here. It may be read, never written."""

    def put(self, data: bytes) -> str:
        """Keep some bytes; returns their digest. Raises DiskFull."""

    def put_stream(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Keep a blob that comes in order, bounded by `size`; blocks kept by an earlier try are not written again.

        Raises PackageTampered when it does not hash to `digest` or is longer or shorter than `size`.
        """

    def writer(self, digest: str, size: int, block_size: int = BLOCK_SIZE) -> BlobWriter:
        """Begin, or go on with, a blob in blocks. Reserves the room at once. Raises DiskFull."""

    def delete(self, digest: str) -> int:
        """Remove a blob and what there is of it; returns the bytes freed (0 when it was not here)."""

    def digests(self) -> set[str]:
        """All whole blobs."""

    def gc(self, keep: Collection[str]) -> int:
        """Remove all blobs and partial blobs that are not in `keep`; returns the bytes freed."""


class _Blocks:
    """Which blocks are here: the arithmetic that both writers share."""

    def __init__(self, digest: str, size: int, block_size: int) -> None:
        hex_of(digest)
        if size < 0 or not 1 <= block_size <= 16 << 20:
            raise ValueError(f"a blob of {size} bytes in blocks of {block_size}")
        self.digest, self.size, self.block_size = digest, size, block_size
        self._here = bytearray((self.blocks + 7) // 8)
        self.received = 0

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block_size)

    def has(self, index: int) -> bool:
        return 0 <= index < self.blocks and bool(self._here[index >> 3] & (0x80 >> (index & 7)))

    def missing(self) -> list[int]:
        return [i for i in range(self.blocks) if not self.has(i)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError

    def _length(self, index: int) -> int:
        return min(self.block_size, self.size - index * self.block_size)

    def _check(self, index: int, data: bytes) -> None:
        if not 0 <= index < self.blocks or len(data) != self._length(index):
            raise ValueError(f"block {index} with {len(data)} bytes does not fit a blob of {self.size}")

    def _mark(self, index: int) -> None:
        self._here[index >> 3] |= 0x80 >> (index & 7)
        self.received += self._length(index)

    def _take(self, here: bytes) -> None:
        self._here = bytearray(here)
        self.received = sum(self._length(i) for i in range(self.blocks) if self.has(i))

    def _clear(self) -> None:
        self._here, self.received = bytearray(len(self._here)), 0

    def _incomplete(self) -> PackageTampered:
        return PackageTampered(f"{self.digest}: only {self.received} of {self.size} bytes are here")

    def _wrong(self) -> PackageTampered:
        return PackageTampered(f"the {self.size} bytes that arrived do not hash to {self.digest}")


class _DiskWriter(_Blocks):
    def __init__(self, store: "BlobStore", digest: str, size: int, block_size: int) -> None:
        super().__init__(digest, size, block_size)
        self._store = store
        self._part = store.partial / f"{hex_of(digest)}.part"
        self._map = self._part.with_suffix(".map")
        self._unsaved = 0
        with disk_errors(self._part):
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._open()
            except BaseException:
                os.close(self._fd)
                raise

    def write(self, index: int, data: bytes) -> bool:
        self._check(index, data)
        if self.has(index):
            return False
        with disk_errors(self._part):
            os.pwrite(self._fd, data, index * self.block_size)
        self._mark(index)
        self._unsaved += len(data)
        if self._unsaved >= SAVE_BYTES:
            self.save()
        return True

    def save(self) -> None:
        if self._unsaved:
            with disk_errors(self._part):
                os.fdatasync(self._fd)
                atomic_write(self._map, _HEADER.pack(_MAGIC, self.block_size, self.size) + bytes(self._here))
            self._unsaved = 0

    def commit(self) -> None:
        if self.received != self.size:
            raise self._incomplete()
        with disk_errors(self._part):
            os.fsync(self._fd)
            if digest_of_file(self._part) != self.digest:
                self.discard()
                raise self._wrong()
            target = self._store.path(self.digest)
            self._part.replace(target)
            fsync_dir(target.parent)
            self._map.unlink(missing_ok=True)
        self._finish()

    def discard(self) -> None:
        self._map.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)
        self._clear()
        self._finish()

    def close(self) -> None:
        if self._fd >= 0:
            try:
                self.save()
            finally:
                self._finish()

    def _finish(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._unsaved = 0

    def _open(self) -> None:
        known = self._map.read_bytes() if self._map.exists() else b""
        header, here = known[: _HEADER.size], known[_HEADER.size :]
        expected = _HEADER.pack(_MAGIC, self.block_size, self.size)
        if header == expected and len(here) == len(self._here) and os.fstat(self._fd).st_size == self.size:
            self._take(here)
            return
        self._map.unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)
        if self.size:
            os.posix_fallocate(self._fd, 0, self.size)


class BlobStore:
    """Blobs in an OCI image layout folder on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.partial = folder / "partial"
        with disk_errors(folder):
            (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            self.partial.mkdir(exist_ok=True)
            if not (folder / "oci-layout").exists():
                atomic_write(folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')

    def has(self, digest: str) -> bool:
        """Whether the whole blob is here."""
        return self.path(digest).is_file()

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return self.folder / "blobs" / "sha256" / hex_of(digest)

    def put(self, data: bytes) -> str:
        """Keep some bytes; returns their digest."""
        digest = digest_of(data)
        if not self.has(digest):
            with disk_errors(self.path(digest)):
                atomic_write(self.path(digest), data)
        return digest

    def put_stream(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Keep a blob that comes in order."""
        _put_stream(self, digest, size, chunks)

    def writer(self, digest: str, size: int, block_size: int = BLOCK_SIZE) -> BlobWriter:
        """Begin, or go on with, a blob in blocks."""
        return _DiskWriter(self, digest, size, block_size)

    def delete(self, digest: str) -> int:
        """Remove a blob and what there is of it."""
        part = self.partial / f"{hex_of(digest)}.part"
        return sum(_remove(p) for p in (self.path(digest), part, part.with_suffix(".map")))

    def digests(self) -> set[str]:
        """All whole blobs."""
        return {f"sha256:{p.name}" for p in (self.folder / "blobs" / "sha256").iterdir() if len(p.name) == 64}

    def gc(self, keep: Collection[str]) -> int:
        """Remove all that is not in `keep`, and what an interrupted write left behind."""
        kept = {hex_of(d) for d in keep}
        growing = {hex_of(d) for d in keep if not self.has(d)}
        folders = ((self.folder / "blobs" / "sha256", kept), (self.partial, growing))
        return sum(
            _remove(p) for folder, names in folders for p in folder.iterdir() if p.name.lstrip(".").partition(".")[0] not in names
        )


class _MemoryWriter(_Blocks):
    def __init__(self, store: "MemoryStore", digest: str, size: int, block_size: int) -> None:
        super().__init__(digest, size, block_size)
        self._store = store
        self._data, here, held_in = store.partial.get(digest, (bytearray(size), bytes(len(self._here)), block_size))
        if (len(self._data), held_in) == (size, block_size):
            self._take(here)
        else:
            self._data = bytearray(size)

    def write(self, index: int, data: bytes) -> bool:
        self._check(index, data)
        if self.has(index):
            return False
        start = index * self.block_size
        self._data[start : start + len(data)] = data
        self._mark(index)
        return True

    def save(self) -> None:
        self._store.partial[self.digest] = (self._data, bytes(self._here), self.block_size)

    def commit(self) -> None:
        if self.received != self.size:
            raise self._incomplete()
        if digest_of(bytes(self._data)) != self.digest:
            self.discard()
            raise self._wrong()
        self._store.put(bytes(self._data))
        self._store.partial.pop(self.digest, None)

    def discard(self) -> None:
        self._store.partial.pop(self.digest, None)
        self._clear()

    def close(self) -> None:
        if self.received and not self._store.has(self.digest):
            self.save()


class MemoryStore:
    """The same in memory, for tests and for passing things on; `path` spills a blob to a private folder."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._folder: Path | None = None
        self._clean: Callable[[], object] = _nothing
        self.partial: dict[str, tuple[bytearray, bytes, int]] = {}

    def has(self, digest: str) -> bool:
        """Whether the whole blob is here."""
        hex_of(digest)
        return digest in self._blobs

    def path(self, digest: str) -> Path:
        """A file with the blob's bytes."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="spokeshave-"))
            self._clean = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / hex_of(digest)
        if digest in self._blobs and not path.exists():
            path.write_bytes(self._blobs[digest])
        return path

    def put(self, data: bytes) -> str:
        """Keep some bytes; returns their digest."""
        digest = digest_of(data)
        self._blobs[digest] = data
        return digest

    def put_stream(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Keep a blob that comes in order."""
        _put_stream(self, digest, size, chunks)

    def writer(self, digest: str, size: int, block_size: int = BLOCK_SIZE) -> BlobWriter:
        """Begin, or go on with, a blob in blocks."""
        return _MemoryWriter(self, digest, size, block_size)

    def delete(self, digest: str) -> int:
        """Remove a blob and what there is of it."""
        if self._folder is not None:
            self.path(digest).unlink(missing_ok=True)
        part = self.partial.pop(digest, None)
        return len(self._blobs.pop(digest, b"")) + (len(part[0]) if part else 0)

    def digests(self) -> set[str]:
        """All whole blobs."""
        return set(self._blobs)

    def gc(self, keep: Collection[str]) -> int:
        """Remove all that is not in `keep`."""
        return sum(self.delete(d) for d in {*self._blobs, *self.partial} - set(keep))

    def close(self) -> None:
        """Remove the private folder. (It is also removed when the store is forgotten, or the program ends.)"""
        self._clean()
        self._folder = None


def _put_stream(store: Store, digest: str, size: int, chunks: Iterable[bytes]) -> None:
    with store.writer(digest, size) as writer:
        index, held = 0, bytearray()
        for chunk in chunks:
            held += chunk
            while len(held) >= writer.block_size:
                index = _place(writer, index, bytes(held[: writer.block_size]))
                del held[: writer.block_size]
        if held:
            index = _place(writer, index, bytes(held))
        if index == writer.blocks:
            writer.commit()
        else:
            raise PackageTampered(f"{digest}: the stream ended after {writer.received} of {size} bytes")


def _place(writer: BlobWriter, index: int, block: bytes) -> int:
    try:
        writer.write(index, block)
    except ValueError as e:
        raise PackageTampered(f"{writer.digest}: the stream is not the {writer.size} bytes that were announced") from e
    return index + 1


def _nothing() -> None:
    return None


def _remove(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size

"""Content-addressed files on a spoke: an OCI image layout folder whose blobs may arrive in pieces, over days, through power cuts.

A partial blob is three files: `partial/<hex>.part`, as long as the whole blob, and two maps of the blocks that are there.

`.live`  marked with each block and never synced. It counts only for the boot that it was written in: a process may be killed
         at any moment, and what it wrote is still in the kernel's memory. After a power cut it is ignored.
`.map`   written only after the blocks in it were synced, every `SYNC_BYTES`, while the transfer goes on.
         A power cut costs what came since.

Neither map lists a block that is not there. A blob gets its name only when all of its bytes hash to it and are synced.

`BlobStore` (disk) and `MemoryStore` are both a `Store`, held to one contract suite (tests/contract/test_store.py), and both are a
`model_formats.package.image_layout.BlobReader`.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import struct
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, Self

from model_formats.core.errors import DeviceError
from model_formats.core.files import atomic_write, fsync_dir
from model_formats.core.types import digest_of, hex_of
from model_formats.package.image_layout import PackageTampered

__all__ = ["BLOCK_SIZE", "SYNC_BYTES", "BlobStore", "BlobWriter", "DiskFailed", "DiskFull", "MemoryStore", "Store", "disk_errors"]

BLOCK_SIZE = 128 * 1024
SYNC_BYTES = 8 * 1024 * 1024
"""Bytes after which a sync begins; when as many again have arrived before it is done, writing waits for the disk."""
_HEADER = struct.Struct(">4sIQ")
_MAGIC = b"SSP1"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


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


class _Prefix:
    """The hash of a file from its beginning. It follows the transfer, so that little is left to do at the end."""

    def __init__(self) -> None:
        self._sha, self._end = hashlib.sha256(), 0

    def follow(self, fd: int, end: int, *, most: int) -> None:
        """The file is whole up to `end` by now: go on by `most` bytes at most."""
        end = min(end, self._end + most)
        while self._end < end and (data := os.pread(fd, min(1 << 20, end - self._end), self._end)):
            self._sha.update(data)
            self._end += len(data)

    def digest(self, fd: int, size: int) -> str:
        """Of the whole file."""
        self.follow(fd, size, most=size)
        return f"sha256:{self._sha.hexdigest()}"


class _DiskWriter(_Blocks):
    def __init__(self, store: "BlobStore", digest: str, size: int, block_size: int) -> None:
        super().__init__(digest, size, block_size)
        self._target, self._header = store.path(digest), _HEADER.pack(_MAGIC, block_size, size)
        self._part = store.partial / f"{hex_of(digest)}.part"
        self._map, self._live = self._part.with_suffix(".map"), self._part.with_suffix(".live")
        self._unsynced, self._prefix = 0, _Prefix()
        self._syncing: Future[None] | None = None
        self._lost: OSError | None = None
        self._fds: list[int] = []
        with disk_errors(self._part):
            try:
                self._open(store.boot)
            except BaseException:
                self._finish()
                raise

    def write(self, index: int, data: bytes) -> bool:
        self._check(index, data)
        if self.has(index):
            return False
        with disk_errors(self._part):
            # First the data, then its mark: a kill in between loses a mark, never claims a block that is not there.
            os.pwrite(self._fds[0], data, index * self.block_size)
            self._mark(index)
            os.pwrite(self._fds[1], self._here[index >> 3 : (index >> 3) + 1], self._marks + (index >> 3))
            self._unsynced += len(data)
            # Not more often: three syncs for every 2 MiB once held transfers to half the speed of the line.
            if self._unsynced >= SYNC_BYTES:
                self._begin_sync()
        return True

    def save(self) -> None:
        with disk_errors(self._part):
            self._end_sync()
            if self._unsynced:
                self._unsynced = 0
                self._sync(bytes(self._here))

    def commit(self) -> None:
        if self.received != self.size:
            raise self._incomplete()
        with disk_errors(self._part):
            self._end_sync()
            # Over the whole file as it is read back, even if every block was checked when it came.
            if self._prefix.digest(self._fds[0], self.size) != self.digest:
                self.discard()
                raise self._wrong()
            self._sync_data()
            # The name is the promise: only now does `has` say yes.
            self._part.replace(self._target)
            # Without this a power cut can undo the rename.
            fsync_dir(self._target.parent)
            self._forget_maps()
        self._finish()

    def discard(self) -> None:
        self._forget_maps()
        self._part.unlink(missing_ok=True)
        self._clear()
        self._finish()

    def close(self) -> None:
        if self._fds:
            try:
                self.save()
            finally:
                self._finish()

    # ---- beside the transfer: a big sync must not hold up the line

    def _begin_sync(self) -> None:
        self._end_sync()
        # On a thread of its own, with a copy of the bitmap: blocks that come while it syncs are not part of what it claims.
        self._syncing = _in_background(self._sync_and_hash, bytes(self._here))
        self._unsynced = 0

    def _end_sync(self) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()
        if self._lost is not None:
            raise self._lost

    def _sync(self, here: bytes) -> None:
        self._sync_data()
        # After the data are on disk, never before.
        atomic_write(self._map, self._header + here)

    def _sync_and_hash(self, here: bytes) -> None:
        self._sync(here)
        self._prefix.follow(self._fds[0], _blocks_in_order(here) * self.block_size, most=2 * SYNC_BYTES)

    def _sync_data(self) -> None:
        """After a sync that failed the kernel holds the lost bytes for written, and the next sync succeeds: believe no mark."""
        try:
            os.fdatasync(self._fds[0])
        except OSError as e:
            self._lost = e
            self._live.unlink(missing_ok=True)
            raise

    # ---- opening and closing

    def _open(self, boot: bytes) -> None:
        self._fds.append(os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
        # A file of another length was left by a crash in `_open`, or belongs to another size: its maps mean nothing.
        whole = os.fstat(self._fds[0]).st_size == self.size
        head = self._header + boot
        live, synced = (
            _read_map(p, h, len(self._here)) if whole else None for p, h in ((self._live, head), (self._map, self._header))
        )
        # The live map is newer; it is empty here if it was written in another boot.
        here = live or synced
        if here:
            self._take(here)
        else:
            self._forget_maps()
            os.ftruncate(self._fds[0], 0)
            if self.size:
                # Reserves the room now, so that a full disk refuses the update at its start and not at the last block.
                os.posix_fallocate(self._fds[0], 0, self.size)
        self._marks = len(head)
        self._fds.append(os.open(self._live, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
        if not live:
            os.ftruncate(self._fds[1], 0)
            os.pwrite(self._fds[1], head + self._here, 0)

    def _forget_maps(self) -> None:
        self._map.unlink(missing_ok=True)
        self._live.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._syncing is not None:
            self._syncing.exception()  # whoever closes without saving has an error of its own to tell
            self._syncing = None
        while self._fds:
            os.close(self._fds.pop())
        self._unsynced = 0


def _read_map(path: Path, head: bytes, length: int) -> bytes | None:
    known = path.read_bytes() if path.exists() else b""
    return known[len(head) :] if known.startswith(head) and len(known) == len(head) + length else None


def _blocks_in_order(here: bytes) -> int:
    """How many blocks are there before the first that is not."""
    whole = len(here) - len(here.lstrip(b"\xff"))
    bits = f"{here[whole]:08b}" if whole < len(here) else ""
    return 8 * whole + len(bits) - len(bits.lstrip("1"))


def _in_background(call: Callable[[bytes], None], argument: bytes) -> "Future[None]":
    """Run a call on a thread of its own; its result or error is in the future."""
    thread = ThreadPoolExecutor(1, "blob-sync")
    try:
        return thread.submit(call, argument)
    finally:
        thread.shutdown(wait=False)


def _this_boot() -> bytes:
    """What tells one run of the kernel from another; where that is unknown, one process from another."""
    try:
        return digest_of(_BOOT.read_bytes()).encode()
    except OSError:
        return digest_of(secrets.token_bytes(16)).encode()


class BlobStore:
    """Blobs in an OCI image layout folder on disk."""

    def __init__(self, folder: Path, *, boot: bytes | None = None) -> None:
        """`boot`: what tells this run of the kernel from others (by default, what the kernel says)."""
        self.folder, self.boot = folder, boot if boot is not None else _this_boot()
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
        return sum(_remove(p) for p in (self.path(digest), part, part.with_suffix(".map"), part.with_suffix(".live")))

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

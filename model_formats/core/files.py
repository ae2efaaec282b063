"""Writes files so that a power cut leaves the old or the new one: write beside, fsync, rename, fsync the folder."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_file", "atomic_write", "fsync_dir", "settle"]


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`: after a power cut it holds the old bytes or the new ones, never a mixture."""
    with atomic_file(path, mode=mode) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Like `atomic_write`, for streams. On an exception the target is untouched and nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the rename stays within one file system. The random part lets two processes write at once.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            # Before the rename: some file systems otherwise make the new name durable before the bytes.
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    # The rename is an entry of the folder, and durable only when the folder is.
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Make renames and new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def settle(part: Path, path: Path) -> None:
    """Give a file that is complete its name (in the same file system), durably."""
    with part.open("rb") as done:
        os.fsync(done.fileno())
    part.replace(path)
    fsync_dir(path.parent)

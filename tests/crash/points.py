"""Every place where an update touches the disk, counted; and what goes wrong at one of them.

The functions of `os` that write are wrapped, as is the journal's commit. SIGKILL ends the process there, `before` or `after` the
call; `torn` lets half of the bytes out first; `lost` takes back what was never synced: bytes that no fsync followed, and renames
that no fsync of their folder followed. `eio` and `enospc` let the call fail once.
"""

import errno
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spoke_agent import journal

MODES = ("before", "after", "torn", "lost", "eio", "enospc")


@dataclass
class Points:
    """Installed in a forked child; `at` None only counts."""

    at: int | None = None
    mode: str = "before"
    seen: list[str] = field(default_factory=list)
    state: Callable[[], str] = lambda: "?"
    _dirty: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _renames: list[tuple[str, str, bytes | None]] = field(default_factory=list)

    def install(self) -> None:
        for name in ("fsync", "fdatasync", "replace", "pwrite", "unlink", "ftruncate", "posix_fallocate", "open", "fdopen"):
            setattr(os, name, self._wrap(name, getattr(os, name)))
        journal.commit_now = self._commit(journal.commit_now)

    # ---- wrappers

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return real(*args, **kwargs)
            if name == "fdopen":
                return _File(real(*args, **kwargs), self)
            return self.point(name, lambda: self._tracked(name, real, args, kwargs), lambda: self._half(name, real, args))

        return call

    def _commit(self, real: Callable[[sqlite3.Connection], None]) -> Callable[[sqlite3.Connection], None]:
        def call(conn: sqlite3.Connection) -> None:
            try:
                self.point("commit", lambda: real(conn), lambda: None)
            except OSError as e:
                conn.rollback()
                raise sqlite3.OperationalError(str(e)) from e

        return call

    # ---- one point

    def point(self, name: str, act: Callable[[], Any], half: Callable[[], None]) -> Any:
        number = len(self.seen)
        self.seen.append(f"{self.state()} {name}")
        if number != self.at:
            return act()
        if self.mode in ("eio", "enospc"):
            code = errno.EIO if self.mode == "eio" else errno.ENOSPC
            raise OSError(code, os.strerror(code))
        if self.mode == "after":
            act()
        elif self.mode == "torn":
            half()
        elif self.mode == "lost":
            act()
            self._lose()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    # ---- what is not yet durable

    def _tracked(self, name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "replace":
            self._note_rename(os.fspath(args[0]), os.fspath(args[1]))
        elif name == "pwrite":
            self.wrote(_path_of(args[0]), args[2], len(args[1]))
        elif name in ("fsync", "fdatasync"):
            self._synced(_path_of(args[0]))
        return real(*args, **kwargs)

    def wrote(self, path: str, offset: int, size: int) -> None:
        self._dirty.setdefault(path, []).append((offset, size))

    def _synced(self, path: str) -> None:
        self._dirty.pop(path, None)
        self._renames = [r for r in self._renames if str(Path(r[1]).parent) != path]

    def _note_rename(self, source: str, target: str) -> None:
        old = Path(target).read_bytes() if Path(target).exists() else None
        self._renames.append((source, target, old))
        if source in self._dirty:
            self._dirty[target] = self._dirty.pop(source)

    def _lose(self) -> None:
        for path, ranges in self._dirty.items():
            if Path(path).exists():
                with Path(path).open("r+b") as file:
                    for offset, size in ranges:
                        file.seek(offset)
                        file.write(bytes(size))
        for source, target, old in reversed(self._renames):
            if Path(target).exists():
                Path(target).rename(source)
            if old is not None:
                Path(target).write_bytes(old)

    @staticmethod
    def _half(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if name == "pwrite":
            real(args[0], args[1][: len(args[1]) // 2], args[2])


class _File:
    """A buffered file whose writes are points."""

    def __init__(self, file: Any, points: Points) -> None:
        self._file, self._points = file, points

    def write(self, data: bytes) -> int:
        path, at = self._file.name, self._file.tell()
        path = _path_of(self._file.fileno()) if isinstance(path, int) else path

        def act() -> int:
            written = int(self._file.write(data))
            self._file.flush()
            self._points.wrote(path, at, written)
            return written

        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        return int(self._points.point("write", act, half))

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _path_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())

"""Every place where a process changes the files of a home, counted; and what goes wrong at one of them.

All of `os` and `open` that changes files is wrapped, and SQLite's own writes (`sqlite_files`). At a point the process ends by
SIGKILL, `kill`ed before the call, with the write `torn` in the middle, or by a power failure after it: all that was not synced is
`lost`, or a `mixed` part of it (`disk`). `eio` fails the call once (a failed sync also loses the bytes, as it does on Linux);
`enospc` fails it and all that needs room for a while.
"""

import builtins
import errno
import io
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.crash.simulated_disk import SimulatedDisk
from tests.crash.sqlite_files import SqliteFiles

FAULTS = ("kill", "torn", "lost", "mixed", "eio", "enospc")
WRITES = ("write", "pwrite")
SYNCS = ("fsync", "fdatasync")
GROWS = (*WRITES, *SYNCS, "open", "mkdir", "link", "replace", "rename", "posix_fallocate", "ftruncate")
"""What a full disk may refuse."""
SPELL = 12
"""Calls for which a full disk stays full."""

_open, _opened, _kill = os.open, io.open, os.kill


def possible(point: str, fault: str) -> bool:
    """Whether a fault makes a difference there."""
    op = point.split()[1]
    return op in {"torn": WRITES, "enospc": GROWS}.get(fault, (op,))


class Points:
    """Installed once in a process of its own; `at` None only counts. `seen`: `state operation file` of every point."""

    def __init__(self, home: Path, at: int | None = None, fault: str = "kill") -> None:
        self.at, self.fault = at, fault
        self.seen: list[str] = []
        self.state: Callable[[], str] = lambda: "starting"
        self._home, self._lock = str(home), threading.RLock()
        self.disk = SimulatedDisk(self._attic(0), _read, _write)
        self._sqlite = SqliteFiles(self)

    def install(self) -> None:
        """From now on, in this process."""
        self.disk.attic = self._attic(os.getpid())
        for name in (*WRITES, *SYNCS, "ftruncate", "posix_fallocate"):
            setattr(os, name, self._on_fd(name, getattr(os, name)))
        for name in ("unlink", "remove", "rmdir", "mkdir", "truncate"):
            setattr(os, name, self._on_path(name, getattr(os, name)))
        for name in ("rename", "replace", "link", "symlink"):
            setattr(os, name, self._on_two(name, getattr(os, name)))
        os.open = self._os_open
        io.open = builtins.open = self._io_open  # type: ignore[assignment]
        self._sqlite.install()

    # ---- one point

    def point(self, op: str, path: str, act: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        """Count; then do it, or fail."""
        with self._lock:
            number = len(self.seen)
            self.seen.append(f"{self.state()} {op} {self._kind(path)}")
            if self.at is None or number < self.at:
                return act()
            if number == self.at:
                return self._fail(op, path, act, half)
            if self.fault == "enospc" and number < self.at + SPELL and op in GROWS:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return act()

    def _fail(self, op: str, path: str, act: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if self.fault in ("eio", "enospc"):
            if op in SYNCS and self.fault == "eio":
                self.disk.drop(path)
            code = errno.EIO if self.fault == "eio" else errno.ENOSPC
            raise OSError(code, os.strerror(code))
        if self.fault == "torn":
            half()
        if self.fault in ("lost", "mixed"):
            act()
            self.disk.fail(Random(self.at) if self.fault == "mixed" else None)
        _kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    # ---- what SQLite asks (see `sqlite_files.Watcher`)

    def creates(self, path: str) -> None:
        self.point("open", path, lambda: self.disk.creates(path))

    def write(self, path: str, act: Callable[[], int], half: Callable[[], int]) -> int:
        return self._change("write", path, act, half)

    def truncate(self, path: str, act: Callable[[], int]) -> int:
        return self._change("ftruncate", path, act)

    def remove(self, path: str, act: Callable[[], int]) -> int:
        if not Path(path).exists():
            return act()
        return int(self.point("unlink", path, lambda: self._after(lambda: self.disk.removes(path), act)))

    def sync(self, path: str, act: Callable[[], int]) -> int:
        def synced() -> int:
            status = act()
            self.disk.synced(path)
            if path.endswith(("-wal", "-journal")) and self.disk.is_new(path):
                self.disk.synced(str(Path(path).parent))  # SQLite does so at the first sync of such a file
            return status

        return int(self.point("fsync", path, synced))

    # ---- what Python asks

    def _on_fd(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *args: Any) -> Any:
            path = _path_of(fd)
            if not self._inside(path):
                return real(fd, *args)
            if name in SYNCS:
                return self.point(name, path, lambda: self._synced(path, lambda: real(fd, *args)))
            return self._change(name, path, lambda: real(fd, *args), lambda: real(fd, _half(args[0]), *args[1:]))

        return call

    def _on_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        before = {"mkdir": self.disk.makes_folder, "rmdir": _nothing, "truncate": self.disk.touches}

        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            found, exists = os.path.abspath(path), os.path.lexists(path)  # noqa: PTH100
            if not self._inside(found) or exists is (name == "mkdir"):
                return real(path, *args, **kwargs)
            first = before.get(name, self.disk.removes)
            return self.point(name, found, lambda: self._after(lambda: first(found), lambda: real(path, *args, **kwargs)))

        return call

    def _on_two(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, **kwargs: Any) -> Any:
            old, new = os.path.abspath(source), os.path.abspath(target)  # noqa: PTH100
            if not self._inside(new):
                return real(source, target, **kwargs)
            first = (lambda: self.disk.moves(old, new)) if name in ("rename", "replace") else (lambda: self.disk.creates(new))
            return self.point(name, new, lambda: self._after(first, lambda: real(source, target, **kwargs)))

        return call

    def _os_open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        found = os.path.abspath(path)  # noqa: PTH100
        new, cut = flags & os.O_CREAT and not Path(found).exists(), flags & os.O_TRUNC
        if not self._inside(found) or not (new or cut):
            return _open(path, flags, *args, **kwargs)
        first = self.disk.creates if new else self.disk.touches
        return int(
            self.point("open", found, lambda: self._after(lambda: first(found), lambda: _open(path, flags, *args, **kwargs)))
        )

    def _io_open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return _opened(file, mode, *args, **kwargs)
        if isinstance(file, int):
            path, new, cut = _path_of(file), False, False
        else:
            path = os.path.abspath(file)  # noqa: PTH100
            new, cut = not Path(path).exists(), "w" in mode
        if not self._inside(path):
            return _opened(file, mode, *args, **kwargs)
        if new or cut:
            first = self.disk.creates if new else self.disk.touches
            real = self.point(
                "open", path, lambda: self._after(lambda: first(path), lambda: _opened(file, mode, *args, **kwargs))
            )
        else:
            real = _opened(file, mode, *args, **kwargs)
        return _File(real, path, self)

    # ---- inside

    def _change(self, op: str, path: str, act: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        def touched(call: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: self._after(lambda: self.disk.touches(path), call)

        return self.point(op, path, touched(act), touched(half))

    def _synced(self, path: str, call: Callable[[], Any]) -> Any:
        done = call()
        self.disk.synced(path)
        return done

    @staticmethod
    def _after(first: Callable[[], Any], then: Callable[[], Any]) -> Any:
        first()
        return then()

    def _attic(self, pid: int) -> Path:
        return Path(f"{self._home}.attic", str(pid))

    def _inside(self, path: str) -> bool:
        return path.startswith(self._home + os.sep) or path == self._home

    def _kind(self, path: str) -> str:
        return re.sub(r"[0-9a-f]{8,}", "*", path.removeprefix(self._home).lstrip(os.sep)) or "."


class _File:
    """A file whose writes are points: nothing waits in a buffer."""

    def __init__(self, file: Any, path: str, points: Points) -> None:
        self._file, self._path, self._points = file, path, points

    def write(self, data: Any) -> int:
        return int(self._points._change("write", self._path, lambda: self._put(data), lambda: self._put(_half(data))))

    def _put(self, data: Any) -> int:
        written = int(self._file.write(data))
        self._file.flush()
        return written

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _half(data: Any) -> Any:
    return data[: len(data) // 2]


def _path_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")  # noqa: PTH115
    except OSError:
        return ""


def _read(path: str) -> bytes:
    with _opened(path, "rb") as file:
        return bytes(file.read())


def _write(path: str, data: bytes) -> None:
    with _opened(path, "r+b") as file:
        file.truncate(len(data))
        file.write(data)


def _nothing(_path: str) -> None: ...

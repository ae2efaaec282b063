"""SQLite's own writes, as points: its default VFS hands over files whose write, sync and truncate come by here first.

The C library that the `sqlite3` module uses is reached through `ctypes`; the structures are those of sqlite3.h, and nothing but
function pointers is exchanged. Without this the rows of a journal would be one point, where they are dozens of writes and syncs.
"""

import _sqlite3
import ctypes
import os
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from errno import ENOSPC
from typing import Any, Protocol

_IOERR, _FULL = 10, 13
_IOERRS = {"write": _IOERR | 3 << 8, "fsync": _IOERR | 4 << 8, "ftruncate": _IOERR | 6 << 8, "unlink": _IOERR | 10 << 8}
_CANTOPEN = 14

_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
"""The name stays a pointer: SQLite keeps it for as long as the file is open."""
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class _Vfs(Structure):
    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
    ]


class _Methods(Structure):
    _fields_ = [
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", c_void_p),
        ("truncate", c_void_p),
        ("sync", c_void_p),
        ("others", c_void_p * 13),
    ]


class Watcher(Protocol):
    """What `points.Points` is to this module."""

    def creates(self, path: str) -> None: ...

    def write(self, path: str, act: Callable[[], int], half: Callable[[], int]) -> int: ...

    def truncate(self, path: str, act: Callable[[], int]) -> int: ...

    def sync(self, path: str, act: Callable[[], int]) -> int: ...

    def remove(self, path: str, act: Callable[[], int]) -> int: ...


class SqliteFiles:
    """Installed once in a process; keeps what C points to alive."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._paths: dict[int, str] = {}
        self._methods: dict[int, _Methods] = {}
        self._alive: list[Any] = []

    def install(self) -> None:
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        vfs = library.sqlite3_vfs_find(None).contents
        self._real_open, self._real_delete = _Open(vfs.open), _Delete(vfs.delete)
        vfs.open, vfs.delete = self._pointer(_Open(self._open)), self._pointer(_Delete(self._delete))

    def _pointer(self, function: Any) -> int:
        self._alive.append(function)
        found = ctypes.cast(function, c_void_p).value
        assert found is not None
        return found

    # ---- the VFS

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        new = bool(path) and not os.path.exists(path)  # noqa: PTH110
        if new:
            try:
                self._watcher.creates(path)
            except OSError:
                return _CANTOPEN
        status = int(self._real_open(vfs, name, file, flags, out))
        if status == 0 and path:
            self._paths[file] = path
            methods = ctypes.cast(file, POINTER(c_void_p))
            methods[0] = ctypes.addressof(self._watched(methods[0]))
        return status

    def _watched(self, address: int) -> _Methods:
        if address not in self._methods:
            real = _Methods.from_address(address)
            mine = _Methods.from_buffer_copy(real)
            mine.write = self._pointer(_Write(self._writing(_Write(real.write))))
            mine.truncate = self._pointer(_Truncate(self._truncating(_Truncate(real.truncate))))
            mine.sync = self._pointer(_Sync(self._syncing(_Sync(real.sync))))
            self._methods[address] = mine
        return self._methods[address]

    def _delete(self, vfs: int, name: bytes, sync_folder: int) -> int:
        path = os.fsdecode(name)
        return _asked("unlink", lambda: self._watcher.remove(path, lambda: self._real_delete(vfs, name, sync_folder)))

    # ---- files

    def _writing(self, real: Any) -> Callable[[int, int, int, int], int]:
        def write(file: int, data: int, size: int, at: int) -> int:
            def put(size: int) -> int:
                return int(real(file, data, size, at))

            return _asked("write", lambda: self._watcher.write(self._paths[file], lambda: put(size), lambda: put(size // 2)))

        return write

    def _truncating(self, real: Any) -> Callable[[int, int], int]:
        return lambda file, size: _asked(
            "ftruncate", lambda: self._watcher.truncate(self._paths[file], lambda: int(real(file, size)))
        )

    def _syncing(self, real: Any) -> Callable[[int, int], int]:
        return lambda file, flags: _asked("fsync", lambda: self._watcher.sync(self._paths[file], lambda: int(real(file, flags))))


def _asked(what: str, call: Callable[[], int]) -> int:
    """SQLite's word for what went wrong."""
    try:
        return call()
    except OSError as e:
        return _FULL if e.errno == ENOSPC else _IOERRS[what]

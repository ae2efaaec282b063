"""Memory: how much this process may still take, and giving back what only loading needed (free heap, code that ran once).

An engine touches some 15 MB of its own code while it opens a model and a tenth of that while it runs one. Executable pages are
never written to, so the kernel may drop them and read them again from its cache when they are called.
"""

import contextlib
import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory_bytes", "release_unused"]

_DONTNEED = 4
_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def free_memory_bytes(proc: Path = _PROC, groups: Path = _GROUPS) -> int | None:
    """The least of the machine's available memory and what the limits of this process's control groups leave; None if unknown.

    A systemd unit's `MemoryMax` and a container's limit are such limits (cgroup v2); each group above counts too. Cached files
    that nobody used lately count as free, as in the machine's own figure: the kernel drops them before it ends a process.
    """
    found = [*_machine_free(proc), *(free for folder in _group_folders(proc, groups) for free in _group_free(folder))]
    return max(0, min(found)) if found else None


def _machine_free(proc: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
        if found:
            yield int(found[1]) * 1024


def _group_folders(proc: Path, groups: Path) -> Iterator[Path]:
    """The group of this process, then those above it; a container sees its own as the root."""
    with contextlib.suppress(OSError):
        found = re.search(r"^0::/(.*)$", (proc / "self" / "cgroup").read_text(), re.MULTILINE)
        folder = groups / (found[1] if found else "")
        while folder != groups and groups in folder.parents:
            yield folder
            folder = folder.parent
    yield groups


def _group_free(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or the root of the machine, which has no such file
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        yield limit - used + (int(cached[1]) if cached else 0)


def release_unused() -> None:
    """Best effort: where there is no Linux or no glibc, nothing is given back."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, rights, *_, path = line.split(maxsplit=5)
            if rights == "r-xp" and path.startswith("/"):
                start, end = (int(at, 16) for at in span.split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)

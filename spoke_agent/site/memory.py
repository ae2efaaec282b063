"""Giving memory back that only loading needed: free heap, and the code of libraries that ran once.

An engine touches some 15 MB of its own code while it opens a model and a tenth of that while it runs one. Executable pages are
never written to, so the kernel may drop them and read them again from its cache when they are called.
"""

import contextlib
import ctypes
from pathlib import Path

__all__ = ["release_unused"]

_DONTNEED = 4


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

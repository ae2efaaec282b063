"""Forbids core dumps of this process, since the memory of a spoke holds rows that are not encrypted."""

import contextlib
import ctypes
import resource

__all__ = ["forbid_core_dumps"]

_PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """For this process and those it starts. Tracebacks are not touched: they name code, not values.

    The limit alone is passed over where dumps are piped to a program (core(5)), so the process is marked as not to be dumped too.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):  # best effort: a C library without prctl still has the limit
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)

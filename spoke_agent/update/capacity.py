"""Reads the facts about this machine."""

import importlib.util
import os
import re
import shutil
from pathlib import Path

from model_formats.core.cpu_class import this_class
from spoke_agent.site.memory import free_memory_bytes
from spoke_agent.update.admission import Capacity

__all__ = ["boot_id", "read_capacity"]

_MIB = 1 << 20
_OPSETS = ((1, 23, 23), (1, 20, 22), (1, 18, 21), (1, 14, 20))
"""ONNX Runtime release -> highest opset it runs (its docs/reference/compatibility)."""


def read_capacity(folder: Path, *, disk_reserve_mb: int, memory_reserve_mb: int) -> Capacity:
    """What this machine has right now, less the reserves."""
    engines = frozenset(name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name))
    return Capacity(
        disk_free=max(0, shutil.disk_usage(folder).free - disk_reserve_mb * _MIB),
        memory_free_mb=max(0, _memory_free_mb() - memory_reserve_mb),
        isa=_isa(),
        opset=_opset(),
        engines=engines,
        cpu_class=this_class(),
    )


def boot_id() -> str:
    """Changes at every boot: monotonic times of another boot mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _memory_free_mb() -> int:
    free = free_memory_bytes()
    return (os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if free is None else free) // _MIB


def _isa() -> frozenset[str]:
    try:
        found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return frozenset(found[1].split()) if found else frozenset()


def _opset() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        major, minor = (int(part) for part in version("onnxruntime").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return 21
    return next((opset for a, b, opset in _OPSETS if (major, minor) >= (a, b)), 0)

"""Classes of CPU, by the instructions of integer kernels. Labels for people and evidence; they never decide what is right."""

import platform
from pathlib import Path
from typing import Literal

import numpy as np

__all__ = ["CpuClass", "classify", "emulated", "this_class"]

CpuClass = Literal["sse42", "avx2", "vnni", "arm64", "arm64_dotprod", "unknown"]
"""`vnni` and `arm64_dotprod` have 8-bit dot products; on `avx2` the 16-bit sums of fast INT8 kernels may saturate."""

_X86, _ARM = frozenset({"x86_64", "amd64", "i686"}), frozenset({"aarch64", "arm64"})
_SAME = {"avx512vnni": "avx512_vnni", "avx512_icl": "avx512_vnni", "avx512_clx": "avx512_vnni", "sse42": "sse4_2"}
"""Flags that NumPy and other systems write differently from Linux."""
_NUMPY = frozenset({"avx2", "avx512f", "sse4_2", "asimddp"})
"""Flags that every NumPy tells of."""


def classify(machine: str, flags: frozenset[str]) -> CpuClass:
    """The class of a machine (`platform.machine()`) with these flags (as in Linux' /proc/cpuinfo)."""
    if machine.lower() in _ARM:
        return "arm64_dotprod" if "asimddp" in flags else "arm64"
    if machine.lower() not in _X86:
        return "unknown"
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "vnni"
    if "avx2" in flags:
        return "avx2"
    return "sse42" if "sse4_2" in flags else "unknown"


def this_class() -> CpuClass:
    """The class of the CPU that this process runs on."""
    return classify(platform.machine(), _flags(_numpy_flags(), _listed_flags()))


def emulated() -> bool:
    """True when this is surely no real CPU: what it says of itself is not what the system lists. Times mean nothing then."""
    return _contradicted(_numpy_flags(), _listed_flags())


def _flags(asked: dict[str, bool], listed: frozenset[str]) -> frozenset[str]:
    """What NumPy asked the CPU itself, and what the system lists. A list that the CPU contradicts is another machine's.

    (An emulator shows its host's list.) The list is needed for what NumPy does not ask, for example `avx_vnni`.
    """
    found = frozenset(name for name, there in asked.items() if there)
    return found if _contradicted(asked, listed) else found | listed


def _contradicted(asked: dict[str, bool], listed: frozenset[str]) -> bool:
    return any(not asked[name] for name in listed & _NUMPY if name in asked)


def _numpy_flags() -> dict[str, bool]:
    inside = getattr(getattr(np, "_core", None), "_multiarray_umath", None)
    features = getattr(inside, "__cpu_features__", {})  # no public name gives this without printing it
    found: dict[str, bool] = {}
    for name, there in features.items():
        key = _SAME.get(name.lower(), name.lower())
        found[key] = found.get(key, False) or bool(there)
    return found


def _listed_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return frozenset()
    words = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(words.split())

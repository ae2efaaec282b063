"""The classes of CPU that the rig knows."""

import platform
import shutil
from dataclasses import dataclass

__all__ = ["EMULATED", "HOST", "MACHINES", "X86", "Machine"]


@dataclass(frozen=True, slots=True)
class Machine:
    """One class: how qemu is asked for it, and an arm64's number in /proc/cpuinfo. Without an emulator it is the host."""

    name: str
    emulator: str = ""
    cpu: str = ""
    part: str = ""
    features: str = ""

    @property
    def arm64(self) -> bool:
        """It needs a Python of its own."""
        return self.emulator == "qemu-aarch64-static"

    def lacks(self) -> str | None:
        """Why it cannot be emulated here, whatever is installed or fetched besides; None when it can."""
        if self.emulator and not shutil.which(self.emulator):
            return f"{self.emulator} is not installed (Debian package qemu-user-static)"
        if self.emulator and not self.arm64 and platform.machine() != "x86_64":
            return f"{self.name} runs this environment's own Python, which is not for x86-64"
        return None


_ASIMD = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOT = f"{_ASIMD} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
HOST = Machine("host")
X86 = (
    Machine("sse42", "qemu-x86_64-static", "Nehalem"),
    # What TCG cannot do is left out, or it would say so on stderr at each start.
    Machine("avx2", "qemu-x86_64-static", "Haswell-noTSX,-invpcid,-pcid,-x2apic,-tsc-deadline"),
)
"""Celeron and Atom boxes; Intel and AMD machines before VNNI, on which fast INT8 products may saturate."""
ARM64 = (
    Machine("arm64_a53", "qemu-aarch64-static", "cortex-a53", "0xd03", _ASIMD),
    Machine("arm64_a72", "qemu-aarch64-static", "cortex-a72", "0xd08", _ASIMD),
    Machine("arm64_a76", "qemu-aarch64-static", "cortex-a76", "0xd0b", _DOT),
)
"""Raspberry Pi 3, 4 and 5; the last has 8-bit dot products."""
EMULATED = (*X86, *ARM64)
MACHINES = (HOST, *EMULATED)

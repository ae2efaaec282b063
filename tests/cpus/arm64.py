"""Debian's arm64 Python and the wheels of `[spoke]`, unpacked into a folder: no chroot, no binfmt, nothing changes on the system.

Packages are fetched with apt under a state of its own, so that the system's architectures and lists stay as they are.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cpus.machines import Machine

__all__ = ["PLATFORMS", "Arm64Missing", "prepare", "prefix"]

ROOT = Path(__file__).parents[2]
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
"""Tags of wheels that an arm64 Debian 12 takes, newest first."""


class Arm64Missing(Exception):
    """The arm64 packages or wheels cannot be had here, and why."""


def prepare(folder: Path) -> Path:
    """The folder with `system/` (Debian) and `wheels/`; made once for these dependencies. Raises Arm64Missing."""
    wanted = hashlib.sha256(b"".join((ROOT / f).read_bytes() for f in ("pyproject.toml", "constraints.txt"))).hexdigest()
    stamp = folder / "made-for"
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    _system(folder)
    _wheels(folder, python_of(folder))
    stamp.write_text(wanted)
    return folder


def prefix(folder: Path, machine: Machine) -> Path:
    """What the class sees as `/`, for `qemu -L`: the unpacked system, and a /proc/cpuinfo of such a CPU.

    qemu 7.2 shows the host's, and ONNX Runtime 1.28 ends in a segmentation fault at import when it reads an x86's there.
    """
    here = folder / machine.name
    (here / "proc").mkdir(parents=True, exist_ok=True)
    for part in (folder / "system").iterdir():
        if not (here / part.name).is_symlink():
            (here / part.name).symlink_to(Path("..") / "system" / part.name)
    (here / "proc" / "cpuinfo").write_text("".join(_processor(n, machine) for n in range(os.cpu_count() or 1)))
    return here


def python_of(folder: Path) -> str:
    """The name of the unpacked interpreter, for example `python3.11`."""
    return next(p.name for p in sorted((folder / "system/usr/bin").glob("python3.*")) if p.name[8:].isdigit())


def _processor(number: int, machine: Machine) -> str:
    return (
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {machine.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {machine.part}\nCPU revision\t: 3\n\n"
    )


def _system(folder: Path) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise Arm64Missing("arm64 packages are fetched with apt-get and unpacked with dpkg, and this system has neither")
    state = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "Dir::State": state / "state",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    _do([*apt, "update"])
    _do([*apt, "install", "--download-only", "--yes", "--no-install-recommends", *PACKAGES])
    for package in sorted((state / "cache/archives").glob("*.deb")):
        _do(["dpkg", "-x", str(package), str(folder / "system")])
    shutil.rmtree(state)


def _wheels(folder: Path, python: str) -> None:
    """`[spoke]` and all it needs, from wheels alone."""
    platforms = [f"--platform={p}" for p in PLATFORMS]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    only = ["--only-binary=:all:", f"--python-version={python.removeprefix('python')}", "--target", str(folder / "wheels")]
    _do([*pip, *only, *platforms, f"{ROOT}[spoke]"])


def _do(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Arm64Missing(f"`{command[0]} ... {command[-1]}` ended with {done.returncode}: {done.stderr.strip()[-400:]}")

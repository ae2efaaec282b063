"""The ground that benches stand on: our libraries as a machine has them after a boot, peers in environments of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["as_after_a_boot", "environment"]

HOUSE = Path("build/peers")


def as_after_a_boot() -> None:
    """Put our libraries out of the kernel's cache, so that they are read again. Call it before they are imported.

    What an installation has just written lies in the cache in large pieces, and Linux from 6.18 on maps a whole piece where a
    process touches one page of it: a server's resident memory reads 15 to 20 MB more than after the next boot.
    """
    os.sync()  # what is not on disk yet stays
    for library in Path(sys.prefix).rglob("*.so*"):
        with library.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def environment(name: str, requirements: Sequence[str]) -> tuple[str | None, str]:
    """The Python of a peer's environment under build/peers/, made at first use; or None, and why it could not be."""
    folder = HOUSE / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=600)
        except (subprocess.SubprocessError, OSError) as e:
            return None, (str(getattr(e, "stderr", "") or e).strip().splitlines() or ["?"])[-1][:200]
        ready.touch()
    return str(python.absolute()), ""

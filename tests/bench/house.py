"""Peers that need other libraries than ours, each in an environment of its own under build/peers/."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["environment"]

HOUSE = Path("build/peers")


def environment(name: str, requirements: Sequence[str]) -> tuple[str | None, str]:
    """Its Python, made at first use; or None, and why it could not be."""
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

"""An engine with a telemetry client, and what such a client left on this machine (ADR 6, docs/residency.md)."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from model_formats.core.check_result import CheckResult
from spoke_agent.site.home import SpokeHome

_FIRST_WITH_CLIENT = (1, 29)
_QUEUE = Path("Microsoft/DeveloperTools/.onnxruntime")


def check(home: SpokeHome) -> CheckResult | None:
    """Look for the queue of reports first: it can hold values of requests."""
    if left := [folder for folder in _caches() if folder.is_dir()]:
        return CheckResult.failed(
            "telemetry",
            f"reports that an engine meant to send lie in {left[0]}; they can hold values of requests",
            f"Remove it: `rm -r {left[0]}`. onnxruntime 1.29 or newer made it (docs/residency.md).",
        )
    try:
        installed = version("onnxruntime")
    except PackageNotFoundError:
        return None
    if tuple(int(part) for part in installed.split(".")[:2] if part.isdigit()) >= _FIRST_WITH_CLIENT:
        return CheckResult.failed(
            "telemetry",
            f"onnxruntime {installed} holds a telemetry client; it is switched off in our processes, not in others'",
            "Install onnxruntime 1.28.0 (constraints.txt), the newest without one.",
        )
    return None


def _caches() -> list[Path]:
    """Where it lies: the cache folder of the environment, and of the account."""
    account = Path.home() / ".cache"
    return [folder / _QUEUE for folder in dict.fromkeys([Path(os.environ.get("XDG_CACHE_HOME") or account), account])]

"""The state of the machine, in the coarse numbers of an `ops` record."""

import http.client
import re
import shutil
import socket
from collections.abc import Iterable
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sync.core.types import Reason
from sync.protocol.egress import Ops

__all__ = ["latency_buckets", "operations", "read_metrics"]

_BUCKETS = 16
_SECONDS = 5.0
_LONGEST = 8 << 20
_LINE = re.compile(r'^spoke_request_seconds_bucket\{.*le="([^"]+)".*\} (\d+)$', re.MULTILINE)


def operations(folder: Path, *, uptime: timedelta, staleness: timedelta, problems: Iterable[str], metrics: str | None) -> Ops:
    """What may be said. `metrics` is the server's page; None where it does not run. Reasons not on the list are dropped."""
    disk = shutil.disk_usage(folder)
    known = {r.value for r in Reason}
    return Ops(
        version=_version(),
        disk_free_percent=_percent(disk.free, disk.total),
        memory_free_percent=_memory_free_percent(),
        uptime_hours=max(0, int(uptime.total_seconds() // 3600)),
        latency_buckets=latency_buckets(metrics or ""),
        problems=tuple(sorted({Reason(p) for p in problems if p in known and p != Reason.NONE.value}))[:32],
        staleness_hours=max(0, int(staleness.total_seconds() // 3600)),
    )


def latency_buckets(metrics: str) -> tuple[int, ...]:
    """Requests answered within 1, 2, 4, 8 ... (x 1.024) milliseconds since the server started, over all models, in tens."""
    totals: dict[float, int] = {}
    for edge, count in _LINE.findall(metrics):
        if edge != "+Inf":
            totals[float(edge)] = totals.get(float(edge), 0) + int(count)
    wanted = sorted(e for e in totals if e >= 0.001)[:_BUCKETS]
    return tuple(totals[e] // 10 * 10 for e in wanted)


def read_metrics(path: Path) -> str | None:
    """The server's metrics page over its unix socket; None where it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(_SECONDS)
            connected.connect(str(path))
            connection = http.client.HTTPConnection("spoke")
            connection.sock = connected
            connection.request("GET", "/metrics", headers={"connection": "close"})
            with connection.getresponse() as answer:
                return answer.read(_LONGEST).decode() if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException, UnicodeDecodeError):
        return None


def _version() -> tuple[int, int, int]:
    try:
        found = [int(n) for n in re.findall(r"\d+", version("spokeshave"))[:3]]
    except PackageNotFoundError:
        found = []
    first, second, third = (*found, 0, 0, 0)[:3]
    return (min(first, 9999), min(second, 9999), min(third, 9999))


def _percent(part: int, whole: int) -> int:
    return min(100, max(0, round(100 * part / whole))) if whole else 0


def _memory_free_percent() -> int:
    try:
        found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    except OSError:
        return 0
    return _percent(int(found.get("MemAvailable", 0)), int(found.get("MemTotal", 0)))

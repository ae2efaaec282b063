"""What several workers say, as one: answers of the control socket, a page of metrics, statistics. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from spoke_agent.server_api.messages import (
    LoadedState,
    ModelState,
    ModelStats,
    ReconcileAnswer,
    RoleStats,
    ShadowStats,
    StatsAnswer,
)

__all__ = ["all_reconciled", "all_stats", "one_page", "one_statistics"]

_LARGEST: Final = ("spoke_uptime_seconds", "spoke_serving_info")
"""Metrics of which the largest is told; all others are sums."""
_PLACES: Final = ("champion", "candidate", "challenger", "last_good")


def all_reconciled(answers: Sequence[ReconcileAnswer]) -> ReconcileAnswer:
    """A slot counts as loaded where every worker has it loaded."""
    names = dict.fromkeys(n for a in answers for n in a.models)
    return ReconcileAnswer(models={n: _state([a.models[n] for a in answers if n in a.models]) for n in names})


def all_stats(answers: Sequence[StatsAnswer]) -> StatsAnswer:
    """Counts are sums, medians those of the busiest worker; the uptime is that of the youngest (a fall is seen)."""
    names = dict.fromkeys(n for a in answers for n in a.models)
    return StatsAnswer(
        uptime_s=min(a.uptime_s for a in answers),
        rss_mb=sum(a.rss_mb for a in answers),
        captured_rows=sum(a.captured_rows for a in answers),
        capture_dropped_rows=sum(a.capture_dropped_rows for a in answers),
        models={n: _model([a.models[n] for a in answers if n in a.models]) for n in names},
    )


def one_page(pages: Sequence[str]) -> str:
    """Pages of Prometheus' text format, of the same program: samples of equal name and labels become one."""
    lines: dict[str, float | None] = {}
    for page in pages:
        family: list[str] = []
        for line in page.splitlines():
            if line.startswith("#"):
                lines.setdefault(line, None)
                family = [*family, line]
                continue
            key, _, text = line.rpartition(" ")
            known = lines.get(key)
            value = float(text)
            lines[key] = value if known is None else max(known, value) if key.startswith(_LARGEST) else known + value
    return "\n".join(key if value is None else f"{key} {value:.15g}" for key, value in _by_family(lines)) + "\n"


def one_statistics(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Triton's statistics: counts and durations of a version are sums."""
    found: dict[tuple[str, str], Any] = {}
    for document in documents:
        for stats in document["model_stats"]:
            key = (stats["name"], stats["version"])
            found[key] = _added(found[key], stats) if key in found else stats
    return {"model_stats": list(found.values())}


def _state(states: Sequence[ModelState]) -> ModelState:
    first = states[0]
    worst: dict[str, LoadedState | None] = {}
    for place in _PLACES:
        seen: list[LoadedState | None] = [getattr(s, place) for s in states]
        worst[place] = next((s for s in seen if s is not None and not s.loaded), seen[0])
    adapter = next((s.adapter for s in states if s.adapter is not None and not s.adapter.loaded), first.adapter)
    swaps = [s.swap_ms for s in states if s.swap_ms is not None]
    return first.replace(**worst, adapter=adapter, swap_ms=max(swaps) if swaps else None)


def _model(models: Sequence[ModelStats]) -> ModelStats:
    idle = [m.idle_s for m in models if m.idle_s is not None]
    return ModelStats(
        **{place: _role([getattr(m, place) for m in models]) for place in _PLACES},
        shadow=ShadowStats(**{n: sum(getattr(m.shadow, n) for m in models) for n in ShadowStats.__struct_fields__}),
        requests=sum(m.requests for m in models),
        bad_requests=sum(m.bad_requests for m in models),
        shed=sum(m.shed for m in models),
        idle_s=min(idle) if idle else None,
    )


def _role(roles: Sequence[RoleStats | None]) -> RoleStats | None:
    """Of the version that most requests went to; a worker that has not followed yet is left out."""
    there = [r for r in roles if r is not None]
    if not there:
        return None
    busiest = max(there, key=lambda r: r.requests)
    same = [r for r in there if r.index == busiest.index]
    counts = {name: sum(getattr(r, name) for r in same) for name in ("requests", "rows", "errors")}
    return busiest.replace(**counts)


def _added(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {key: _added(value, other[key]) for key, value in one.items()}
    return one + other if isinstance(one, int) else one


def _by_family(lines: Mapping[str, float | None]) -> Sequence[tuple[str, float | None]]:
    """A sample that only a later page had goes to its family, as the format asks."""
    order: dict[str, list[tuple[str, float | None]]] = {}
    families: list[str] = []
    for key, value in lines.items():
        if value is None:
            name = key.split()[2]
            families = families if name in families else [*families, name]
        else:
            bare = key.partition("{")[0]
            name = next(f for f in reversed(families) if bare in (f, f"{f}_bucket", f"{f}_sum", f"{f}_count"))
        order.setdefault(name, []).append((key, value))
    return [item for items in order.values() for item in items]

"""`hub drift`: where models see what they were not built on, and whether it matters."""

from typing import Any

import click

from hub.client.http import HubClient
from model_formats.core.console import Context, emit, out, pass_context, table

__all__ = ["group"]

_BARS = " ▁▂▃▄▅▆▇█"


@click.group("drift")
def group() -> None:
    """What the sites say of their data, without their data."""


@group.command()
@click.option("--model", help="One model only.")
@click.option("--days", type=float, default=30.0, show_default=True, help="How far back.")
@pass_context
def show(ctx: Context, model: str | None, days: float) -> None:
    """Every version over the fleet: sites by what it costs there, what moved, and what to do."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get("/drift", model=model, days=days)
    emit(ctx, _flat(answer["versions"]), _show)


def _flat(versions: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer with one list of all sites beside the versions, so that scripts need not walk."""
    sites = [
        {"model": v["model"], "version": v["version"], "alarm": s["level"] == "alarm", "words": _words(s), **s}
        for v in versions
        for s in v["sites"]
    ]
    return {"sites": sites, "versions": versions}


def _show(value: dict[str, Any]) -> None:
    if not value["versions"]:
        out.print("no site has said anything yet")
    for version in value["versions"]:
        out.print(f"{version['model']}@{version['version']}: {version['pattern'].replace('_', ' ')}", style="bold")
        for words in version["words"]:
            out.print(f"  {words}", markup=False)
        if version["retrain"]:
            out.print("  drift and a loss of accuracy agree: train a new version", style="yellow")
        table(
            ["", "site", "says", "evidence", "rows", "since (UTC)", "accuracy here", "what moved"],
            (
                ["", s["site"], s["level"], _bar(s["evidence"]), s["rows"], s["since"][:16], _accuracy(s), _moved(s)]
                for s in version["sites"]
            ),
        )
        for column in (version["pooled"] or {}).get("columns", [])[:5]:
            out.print(f"  {column['feature']}", markup=False)
            out.print(f"    built on {_plot(column['reference'])}", markup=False)
            out.print(f"    now      {_plot(column['counts'])}", markup=False)


def _words(site: dict[str, Any]) -> str:
    moved = _moved(site) or ("a relation between columns" if site["joint"] >= 2 else "nothing in particular")
    return f"{site['site']} says {site['level']} on at least {site['rows']} rows; what moved: {moved}"


def _moved(site: dict[str, Any]) -> str:
    return ", ".join(f"{m['feature']} {m['direction']}" for m in site["moved"][:3]) + (" ..." if len(site["moved"]) > 3 else "")


def _accuracy(site: dict[str, Any]) -> str:
    e = site["estimate"]
    if e is None:
        return ""
    return f"{e['estimate']} % ({e['low']}-{e['high']})" if e["valid"] else "not to be told"


def _bar(evidence: int) -> str:
    return "█" * evidence if evidence else "·"


def _plot(counts: list[int]) -> str:
    most = max(counts, default=0) or 1
    return "".join(_BARS[-(-8 * c // most)] for c in counts)

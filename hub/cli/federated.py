"""`hub federated`: what is true over all sites together, without any site's own numbers."""

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import click

from hub.client.http import HubClient
from model_formats.core.console import Context, emit, out, pass_context, table
from model_formats.statistics.federated_sums import Statistic

__all__ = ["group"]

TIME = click.DateTime(["%Y-%m-%dT%H:%M", "%Y-%m-%d"])


@click.group("federated")
def group() -> None:
    """Sums over ten sites or more, masked so that nobody sees one site's share. Sites must have opted in."""


@group.command()
@click.option("--model", required=True, metavar="NAME@VERSION", help="Whose rows.")
@click.option("--statistic", required=True, type=click.Choice(get_args(Statistic)), help="What to add up.")
@click.option("--zone", required=True, help="The sites of this residency zone are asked.")
@click.option(
    "--feature", "features", multiple=True, help="Column of the reference profile, may be repeated; default: all inputs."
)
@click.option("--start", type=TIME, help="First moment of the rows, UTC; default: 24 hours before the end.")
@click.option("--end", type=TIME, help="Last moment, UTC, in the past; default: now.")
@click.option("--epsilon", type=click.FloatRange(0.01, 10), default=1.0, show_default=True, help="Privacy that it costs a site.")
@click.option("--min-sites", type=click.IntRange(10, 256), default=10, show_default=True, help="Fewer are not added up.")
@click.option("--gather", type=click.FloatRange(1), default=3600.0, show_default=True, help="Seconds in which sites may join.")
@click.option("--answer", type=click.FloatRange(1), default=86400.0, show_default=True, help="Seconds for the shares after that.")
@click.option("--name", help="Name of the question; default: made from model, statistic and time.")
@pass_context
def ask(
    ctx: Context,
    model: str,
    statistic: str,
    zone: str,
    features: tuple[str, ...],
    start: datetime | None,
    end: datetime | None,
    epsilon: float,
    min_sites: int,
    gather: float,
    answer: float,
    name: str | None,
) -> None:
    """Ask a zone. The answer comes when every site that joined has sent its share: see `show`."""
    until = (end or datetime.now(UTC)).replace(tzinfo=UTC)
    since = start.replace(tzinfo=UTC) if start else until - timedelta(hours=24)
    body = {
        "model": model,
        "statistic": statistic,
        "zone": zone,
        "features": list(features),
        "start": since.isoformat(),
        "end": until.isoformat(),
        "epsilon": epsilon,
        "min_sites": min_sites,
        "gather_s": gather,
        "answer_s": answer,
        "name": name,
    }
    with HubClient.local(ctx.home) as hub:
        found = hub.send("POST", "/federated", json=body).json()
    emit(ctx, found, _show)


@group.command("list")
@pass_context
def list_(ctx: Context) -> None:
    """All questions, newest first."""
    with HubClient.local(ctx.home) as hub:
        found = hub.get("/federated")
    emit(
        ctx,
        found,
        lambda rows: table(
            ["question", "model", "statistic", "zone", "state", "sites", "closes (UTC)"],
            ([q["name"], q["model"], q["statistic"], q["zone"], q["state"], len(q["members"]), q["closes"][:16]] for q in rows),
        ),
    )


@group.command()
@click.argument("name")
@pass_context
def show(ctx: Context, name: str) -> None:
    """One question: who answers, where it is, and what the opened sum says."""
    with HubClient.local(ctx.home) as hub:
        found = hub.get(f"/federated/{name}")
    emit(ctx, found, _show)


def _show(found: dict[str, Any]) -> None:
    out.print(f"{found['name']}: {_STATES[found['state']]}", style="bold", markup=False)
    out.print(
        f"  {found['statistic']} of {found['model']}, rows of {found['start'][:16]} to {found['end'][:16]} UTC", markup=False
    )
    if found["result"] is None:
        out.print(f"  sites join until {found['closes'][:16]}, shares are taken until {found['expires'][:16]} UTC", markup=False)
        return
    result = found["result"]
    out.print(f"  over {result['sites']} sites, noise of epsilon {result['epsilon_milli'] / 1000:g} from each", markup=False)
    table(["column", "rows", "mean", "variance", "counts (fewer than 10: ·)"], (_row(part) for part in result["parts"]))


def _row(part: dict[str, Any]) -> list[object]:
    cells = part["cells"]
    counts = "" if cells is None else " ".join("·" if c is None else str(c) for c in cells) + f"  (each ± {part['noise']:.1f})"
    mean = "" if part["mean"] is None else f"{part['mean']:.5g} ± {part['mean_noise']:.2g}"
    variance = "" if part["variance"] is None else f"{part['variance']:.5g}"
    return [part["name"], part["rows"], mean, variance, counts]


_STATES = {
    "gathering": "sites may join",
    "summing": "the cohort is fixed, shares come in",
    "answered": "opened",
    "too_few": "too few sites joined, so nothing was added up",
    "incomplete": "a share is missing, so the sum was never opened; ask again for later rows",
}

"""`spoke challenger`: another version answers a share of the callers, as this site decides."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from model_formats.core.console import Context, emit, out, pass_context, table, talk

if TYPE_CHECKING:
    from spoke_agent.daemon.challenger import ChallengerComparison, VersionStats

__all__ = ["group"]


@click.group()
def group() -> None:
    """Let another version answer a share of the callers, and compare the two."""


@group.command("set")
@click.option("--model", required=True, help="Name of the model.")
@click.option(
    "--version", required=True, type=click.IntRange(min=1), help="A version kept here: the last good one, or a candidate."
)
@click.option(
    "--percent", required=True, type=click.IntRange(1, 100), help="Of the requests that name no version and no adapter."
)
@click.option("--sticky", is_flag=True, help="Only callers that send parameters.sticky take part: nobody meets both versions.")
@pass_context
def set_(ctx: Context, *, model: str, version: int, percent: int, sticky: bool) -> None:
    """Give a version its share. Given again, it replaces the one before. It ends when a newer champion is committed."""
    from spoke_agent.daemon.challenger import set_challenger
    from spoke_agent.site.home import SpokeHome

    serving = set_challenger(SpokeHome(ctx.home), model, version, percent=percent, sticky=sticky)
    if not serving:
        talk.print("the server is not running; it will follow when it starts")
    value = {"model": model, "version": version, "percent": percent, "sticky": sticky, "serving": serving}
    whom = "callers with a key" if sticky else "callers"
    emit(ctx, value, lambda _: out.print(f"{model}@{version} answers {percent} % of {whom}"))


@group.command()
@pass_context
def show(ctx: Context) -> None:
    """Every challenger beside its champion: requests, errors, time, and how many labelled rows each got right."""
    from spoke_agent.daemon.challenger import show as rivals
    from spoke_agent.site.home import SpokeHome

    found = rivals(SpokeHome(ctx.home))
    emit(ctx, [asdict(r) for r in found], lambda _: _show(found))


@group.command()
@click.option("--model", required=True, help="Name of the model.")
@pass_context
def stop(ctx: Context, *, model: str) -> None:
    """The champion answers everybody again."""
    from spoke_agent.daemon.challenger import stop as end
    from spoke_agent.site.home import SpokeHome

    was = end(SpokeHome(ctx.home), model)
    said = "stopped" if was else "there was no challenger"
    emit(ctx, {"model": model, "stopped": was}, lambda _: out.print(f"{model}: {said}"))


def _show(found: "list[ChallengerComparison]") -> None:
    table(
        ["model", "role", "version", "share", "requests", "errors", "p50 ms", "labelled", "right"],
        [row for r in found for row in (_row(r, "champion", r.champion), _row(r, "challenger", r.challenger))],
    )


def _row(r: "ChallengerComparison", role: str, side: "VersionStats | None") -> list[object]:
    share = f"{r.percent} %{' of keys' if r.sticky else ''}{', rests' if r.rests else ''}" if role == "challenger" else ""
    if side is None:
        return [r.model, role, r.version if role == "challenger" else "", share, "", "", "", "", ""]
    p50 = "" if side.request_ms_p50 is None else f"{side.request_ms_p50:.2f}"
    return [r.model, role, side.version, share, side.requests, side.errors, p50, side.labelled, side.right]

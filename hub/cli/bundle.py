"""`hub bundle export` and `hub receipts import`: spokes without a network."""

from pathlib import Path
from typing import Any

import click

from hub.client.http import HubClient
from model_formats.core.console import Context, emit, out, pass_context, talk
from sync.core.types import SpokeId

__all__ = ["group", "receipts"]


@click.group("bundle")
def group() -> None:
    """Carry models to spokes without a network."""


@group.command()
@click.option("--site", "spoke", required=True, help="The spoke it is for (site, or site/spoke).")
@click.option(
    "--model", "models", multiple=True, metavar="MODEL@VERSION", help="Version to bring; default: what it should serve."
)
@click.option("--out", "file", type=click.Path(dir_okay=False, path_type=Path), help="File to write; default SITE.bundle here.")
@click.option("--days", type=float, default=30, show_default=True, help="How long the bundle may be applied.")
@click.option("--soak", type=click.IntRange(0, 86400), default=10, show_default=True, help="Seconds it is watched first.")
@click.option("--encrypt", is_flag=True, help="Encrypt it to the spoke's device key.")
@pass_context
def export(
    ctx: Context, spoke: str, models: tuple[str, ...], file: Path | None, days: float, soak: int, *, encrypt: bool
) -> None:
    """Write one file for one spoke: package, signatures, release metadata and its directive."""
    me = SpokeId.parse(spoke)
    file = file or Path(f"{me.site}.bundle")
    order = {"spoke": str(me), "models": list(models), "days": days, "encrypt": encrypt, "soak_s": soak}
    with HubClient.local(ctx.home) as hub:
        size = hub.fetch("/bundles", order, file)
    told = {"spoke": str(me), "file": str(file), "bytes": size}
    emit(
        ctx, told, lambda t: out.print(f"{t['file']} ({t['bytes']} bytes) is for {t['spoke']}: spoke sideload apply {file.name}")
    )


@click.group("receipts")
def receipts() -> None:
    """What spokes without a network have to say."""


@receipts.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@pass_context
def import_(ctx: Context, file: Path) -> None:
    """Take FILE (from `spoke sideload receipts`): signed reports, and what its outbox let out. Each file counts once."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.send("POST", "/receipts", file.read_bytes()).json()
    emit(ctx, answer, _show)


def _show(done: dict[str, Any]) -> None:
    out.print(f"{done['spoke']} serves {', '.join(done['serving']) or 'nothing'}")
    out.print(f"{done['reports']} reports and {done['egress']} outbox records taken")
    for why in done["refused"]:
        talk.print(f"left out: {why}", style="dim")

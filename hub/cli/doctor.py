"""`hub doctor`: what is wrong with this hub, and what to do."""

from dataclasses import asdict
from typing import Any

import click

from hub.config.home import HubHome
from hub.context import HubMissing
from model_formats.core.console import Context, emit, out, pass_context

__all__ = ["doctor"]


@click.command()
@pass_context
def doctor(ctx: Context) -> None:
    """Check this hub; exits with 1 when something needs attention."""
    from hub.app.doctor import examine

    home = HubHome(ctx.home)
    if not home.metadata.exists():
        raise HubMissing(f"no hub in {ctx.home}")
    findings = examine(home)
    emit(ctx, [asdict(f) for f in findings], _show)
    if not all(f.ok for f in findings):
        raise click.exceptions.Exit(1)


def _show(findings: list[dict[str, Any]]) -> None:
    from rich.text import Text

    for f in findings:
        mark = ("ok  ", "green") if f["ok"] else ("look", "red")
        out.print(Text.assemble(mark, f" {f['check']}: {f['found']}"))
        if f["advice"]:
            out.print(Text(f"       {f['advice']}", style="dim"))

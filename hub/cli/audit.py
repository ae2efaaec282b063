"""`hub audit`: what was done, by whom, and that nothing was taken out."""

from typing import Any

import click

from hub.client.http import HubClient
from model_formats.core.console import Context, emit, out, pass_context, table
from model_formats.core.errors import RefusedError

__all__ = ["AuditBroken", "group"]


class AuditBroken(RefusedError):
    """The audit chain does not fit together."""

    code = "audit_broken"
    hint = "Somebody changed the database outside of Spokeshave. Compare with a backup and with heads written down elsewhere."


@click.group("audit")
def group() -> None:
    """The append-only, hash-chained log of every act."""


@group.command()
@click.option("--after", type=int, default=0, help="Only lines after this number.")
@click.option("--limit", type=int, default=1000, show_default=True)
@pass_context
def show(ctx: Context, after: int, limit: int) -> None:
    """Print the log, oldest first."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get("/audit", after=after, limit=limit)
    emit(ctx, answer, _show)


@group.command()
@pass_context
def verify(ctx: Context) -> None:
    """Check the whole chain; the head it prints is worth writing down elsewhere."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get("/audit/verify")
    if not answer["ok"]:
        raise AuditBroken(f"line {answer['first_misfit']} does not follow from the one before")
    emit(ctx, answer, lambda a: out.print(f"{a['lines']} lines, whole. Head {a['head']}"))


def _show(lines: list[dict[str, Any]]) -> None:
    rows = ((x["number"], x["time"][:19], x["who"], x["action"], x["what"], _details(x["details"])) for x in lines)
    table(("", "time (UTC)", "who", "did", "to", ""), rows)


def _details(details: dict[str, str]) -> str:
    return ", ".join(f"{k} {v}" for k, v in details.items())

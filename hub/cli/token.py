"""`hub token`: who else may use this hub."""

from typing import Any

import click

from hub.client.http import HubClient
from hub.rules.access import Role
from model_formats.core.console import Context, emit, out, pass_context, table

__all__ = ["group"]


@click.group("token")
def group() -> None:
    """Bearer tokens for people and programs, by role."""


@group.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice([r.value for r in Role]),
    help="May be given several times.",
)
@click.option("--days", type=float, help="How long it lives; default: until it is revoked.")
@pass_context
def create(ctx: Context, name: str, roles: tuple[str, ...], days: float | None) -> None:
    """Make a token for NAME; it is shown this once."""
    order = {"name": name, "roles": ",".join(roles), "life_s": days * 86400 if days else None}
    with HubClient.local(ctx.home) as hub:
        answer = hub.post("/tokens", order)
    emit(ctx, answer, lambda a: out.print(a["token"]))


@group.command("list")
@pass_context
def list_(ctx: Context) -> None:
    """All tokens, without their secrets."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get("/tokens")
    emit(ctx, answer, _show)


@group.command()
@click.argument("number", metavar="ID")
@pass_context
def revoke(ctx: Context, number: str) -> None:
    """End a token at once."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.delete(f"/tokens/{number}")
    emit(ctx, answer, lambda a: out.print(f"{a['id']} is revoked"))


def _show(tokens: list[dict[str, Any]]) -> None:
    table(("id", "name", "roles", "state"), ((t["id"], t["name"], t["roles"], "revoked" if t["revoked"] else "") for t in tokens))

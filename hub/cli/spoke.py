"""`hub spoke`: invite, admit, list, show, revoke."""

from pathlib import Path
from typing import Any

import click

from hub.cli.engine_words import micros, passed_over, way
from hub.client.http import HubClient
from model_formats.core.console import Context, emit, out, pass_context, table, talk
from model_formats.core.errors import OperatorError
from model_formats.core.files import atomic_write
from provisioning.identity.enrol import EnrolmentGrant, EnrolmentRequest
from sync.core.types import REGIMES, SpokeId

__all__ = ["group"]


@click.group("spoke")
def group() -> None:
    """The fleet: who may join, who is there, what they serve."""


@group.command()
@click.argument("spoke")
@click.option("--zone", required=True, help="Residency zone.")
@click.option("--regime", required=True, type=click.Choice(REGIMES), help="Data-protection regime of the site.")
@click.option("--hours", type=float, help="How long the code holds; default is the hub's setting.")
@pass_context
def invite(ctx: Context, spoke: str, zone: str, regime: str, hours: float | None) -> None:
    """Make a one-time enrolment code for SPOKE (site, or site/spoke)."""
    order = {"spoke": spoke, "zone": zone, "regime": regime, "life_s": hours * 3600 if hours else None}
    with HubClient.local(ctx.home) as hub:
        answer = hub.post("/invites", order)
    emit(ctx, answer, _show_invite)


@group.command()
@click.argument("request", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("grant", type=click.Path(dir_okay=False, path_type=Path))
@pass_context
def admit(ctx: Context, request: Path, grant: Path) -> None:
    """Enrol a spoke without a network: read its REQUEST file, write the GRANT file to carry back."""
    asked = EnrolmentRequest.read(request)
    with HubClient.local(ctx.home) as hub:
        answer = EnrolmentGrant.parse(hub.send("POST", "/enrolments", asked.canonical()).content)
    atomic_write(grant, answer.canonical())
    told = {"spoke": str(SpokeId(answer.site, answer.spoke)), "zone": answer.zone, "regime": answer.regime, "grant": str(grant)}
    emit(ctx, told, lambda t: out.print(f"{t['spoke']} is enrolled; carry {t['grant']} back to it."))


@group.command("list")
@click.option("--revoked", is_flag=True, help="Show revoked spokes too.")
@pass_context
def list_(ctx: Context, *, revoked: bool) -> None:
    """All spokes: zone, liveness, and what each serves by its signed word."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get("/spokes", revoked=str(revoked).lower())
    emit(ctx, answer, _show_all)


@group.command()
@click.argument("spoke")
@pass_context
def show(ctx: Context, spoke: str) -> None:
    """One spoke: what it should serve, what it serves, and its last reports."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get(_path(spoke))
    emit(ctx, answer, _show_one)


@group.command()
@click.argument("spoke")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def revoke(ctx: Context, spoke: str, *, yes: bool) -> None:
    """End a spoke's access: no topic, no token; it goes on serving what it has."""
    if not yes and not click.confirm(f"Revoke {spoke}?", err=True):
        raise OperatorError("nothing was changed", hint="Answer yes, or give --yes.")
    with HubClient.local(ctx.home) as hub:
        answer = hub.delete(_path(spoke))
    emit(ctx, answer, lambda a: talk.print(f"{a['spoke']} is revoked"))


def _show_invite(answer: dict[str, Any]) -> None:
    out.print(answer["code"])
    talk.print(
        f"Once, until {answer['expires'][:16].replace('T', ' ')} UTC: spoke enrol --hub {answer['hub']} --code {answer['code']}"
    )


def _path(spoke: str) -> str:
    me = SpokeId.parse(spoke)
    return f"/spokes/{me.site}/{me.spoke}"


def _serving(spoke: dict[str, Any]) -> str:
    return ", ".join(
        f"{s['model']}@{s['version']} ({s['variant']}{', adapted' if s['adapted'] else ''})" for s in spoke["serving"]
    )


def _show_all(spokes: list[dict[str, Any]]) -> None:
    rows = ((s["spoke"], s["zone"], s["regime"], "online" if s["online"] else "offline", _serving(s)) for s in spokes)
    table(("spoke", "zone", "regime", "state", "serves"), rows)


def _show_one(spoke: dict[str, Any]) -> None:
    _show_all([spoke])
    seen = spoke["last_seen"][:19] if spoke["last_seen"] else "never"
    out.print(f"directive generation {spoke['generation']}, enrolled {spoke['enrolled'][:19]}, last seen {seen} (UTC)")
    _show_ways(spoke["serving"])
    table(("should serve", "by rollout"), ((f"{w['model']}@{w['version']}", w["rollout"]) for w in spoke["wanted"]))
    rows = (
        (r["received"][:19], f"{r['model']}@{r['version']}", r["state"], r["reason"], passed_over(r["evidence"]))
        for r in spoke["reports"]
    )
    table(("report", "version", "state", "reason", "variants passed over"), rows)


def _show_ways(serving: list[dict[str, Any]]) -> None:
    rows = (
        (f"{s['model']}@{s['version']}", s["variant"], way(s), s["cpu_class"] or "", micros(s["latency_us"]), micros(s["row_us"]))
        for s in serving
    )
    if serving:
        table(("serves", "variant", "engine", "CPU class", "one row", "a row of 32"), rows)

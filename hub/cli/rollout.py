"""`hub rollout`: apply, list, show, approve, pause, resume, abort."""

from pathlib import Path
from typing import Any

import click

from hub.cli.engine_words import passed_over, way
from hub.client.http import HubClient
from hub.rules.rollout_plan import RolloutPlan
from model_formats.core.console import Context, emit, out, pass_context, table, talk

__all__ = ["group"]


@click.group("rollout")
def group() -> None:
    """Bring a version to the fleet ring by ring, on evidence."""


@group.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check it and tell who would be in which ring; change nothing.")
@pass_context
def apply(ctx: Context, file: Path, *, dry_run: bool) -> None:
    """Start the rollout in FILE (YAML, `kind: Rollout`)."""
    plan = RolloutPlan.parse(file.read_bytes())
    with HubClient.local(ctx.home) as hub:
        answer = hub.send("POST", "/rollouts", plan.canonical(), params={"dry_run": str(dry_run).lower()}).json()
    emit(ctx, answer, _show_rings if dry_run else _show)


@group.command("list")
@pass_context
def list_(ctx: Context) -> None:
    """All rollouts, newest first."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get("/rollouts")
    emit(ctx, answer, _show_list)


@group.command()
@click.argument("name")
@click.option(
    "--why", is_flag=True, help="Show the CPU, variant and engine of every spoke too, and which variants it passed over."
)
@pass_context
def show(ctx: Context, name: str, *, why: bool) -> None:
    """Where a rollout is, and on what evidence."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get(f"/rollouts/{name}")
    emit(ctx, answer, _show_why if why else _show)


@group.command()
@click.argument("name")
@pass_context
def approve(ctx: Context, name: str) -> None:
    """Say yes to a rollout that waits for approvals (not one's own)."""
    _steer(ctx, name, "approve")


@group.command()
@click.argument("name")
@pass_context
def pause(ctx: Context, name: str) -> None:
    """No further spokes; those under way go on."""
    _steer(ctx, name, "pause")


@group.command()
@click.argument("name")
@pass_context
def resume(ctx: Context, name: str) -> None:
    """Go on with a paused rollout."""
    _steer(ctx, name, "resume")


@group.command()
@click.argument("name")
@click.option("--why", default="", help="A word for the audit log.")
@pass_context
def abort(ctx: Context, name: str, why: str) -> None:
    """End a rollout; the spokes it has reached go back where the plan says so."""
    _steer(ctx, name, "abort", {"why": why})


def _steer(ctx: Context, name: str, verb: str, body: dict[str, str] | None = None) -> None:
    with HubClient.local(ctx.home) as hub:
        answer = hub.post(f"/rollouts/{name}/{verb}", body)
    emit(ctx, answer, _show)


def _show_list(rollouts: list[dict[str, Any]]) -> None:
    table(("rollout", "model", "state", "why"), ((r["name"], r["model"], r["state"], r["reason"]) for r in rollouts))


def _show(rollout: dict[str, Any]) -> None:
    out.print(f"[bold]{rollout['name']}[/]  {rollout['model']}  {rollout['state']}  {rollout['reason']}")
    counts = ("committed", "failed", "rejected", "unfit", "active", "missing")
    table(("ring", "state", *counts), ((r["name"], r["state"], *(r[c] for c in counts)) for r in rollout["rings"]))
    rows = (
        (m["spoke"], r["name"], _online(m), m["state"], m["reason"], _evidence(m)) for r in rollout["rings"] for m in r["members"]
    )
    table(("spoke", "ring", "", "state", "reason", "evidence"), rows)
    if rollout["state"] == "pending":
        talk.print(f"Somebody with the role approver, other than {rollout['author']}: `hub rollout approve {rollout['name']}`.")


def _show_why(rollout: dict[str, Any]) -> None:
    _show(rollout)
    members = [m for ring in rollout["rings"] for m in ring["members"]]
    seen = [(m, m["evidence"]) for m in members]
    rows = ((m["spoke"], m["cpu_class"] or "", e["variant"] or "", way(e), passed_over(e)) for m, e in seen)
    table(("spoke", "CPU class", "variant", "engine", "passed over"), rows)


def _show_rings(preview: dict[str, Any]) -> None:
    table(("ring", "spokes"), ((name, ", ".join(spokes)) for name, spokes in preview["rings"].items()))


def _online(member: dict[str, Any]) -> str:
    return "online" if member["online"] else "offline"


def _evidence(member: dict[str, Any]) -> str:
    e = member["evidence"]
    parts = ["counts withheld by the site"] if e["withheld"] else []
    if e["shadow_rows"]:
        parts.append(f"differs on {e['shadow_disagreements']} of {e['shadow_rows']} mirrored rows")
    if e["labelled"]:
        parts.append(f"{e['labelled_correct']} of {e['labelled']} labelled right")
    if e["bytes_total"]:
        parts.append(f"{e['bytes_received']:,} bytes for {e['bytes_total']:,}{' (delta)' if e['used_delta'] else ''}")
    if e["rollback_ms"] is not None:
        parts.append(f"rolled back in {e['rollback_ms']} ms")
    return ", ".join(parts)

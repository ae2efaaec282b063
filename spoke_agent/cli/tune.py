"""`spoke tune` and `spoke adapter`: fit a model's head to this site, and manage what came of it. Nothing of it leaves."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model_formats.core.console import Context, emit, out, pass_context, table, talk
from model_formats.core.document import Value
from spoke_agent.adapters.gate import GateVerdict
from spoke_agent.adapters.store import ShadowComparison

if TYPE_CHECKING:
    from spoke_agent.site.slots import ModelSlots
    from spoke_agent.tuning.site_context import SiteContext
    from spoke_agent.tuning.tuner import Method

__all__ = ["adapter", "tune"]

_NICE = 10


class TuneView(Value):
    """What `spoke tune` prints."""

    adapter: str
    model: str
    version: int
    base: str
    method: str
    rows: int
    penalty: float
    gate: GateVerdict
    accepted: bool
    """Always true: what the gate refuses ends in an error."""
    reason: str
    shadow: ShadowComparison
    serving: bool


def _open(home: Path) -> "SiteContext":
    from spoke_agent.tuning.site_context import SiteContext

    return SiteContext.open(home)


@click.command()
@click.option("--model", required=True, help="Name of the model to adapt.")
@click.option("--no-use", is_flag=True, help="Only fit and gate; `spoke adapter use` switches later.")
@click.option(
    "--method",
    type=click.Choice(["head", "lora", "full"]),
    default="head",
    show_default=True,
    help="Fit the head, or the whole model by low-rank changes or freely; these two need the [train] extra.",
)
@click.option("--minutes", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Most time for lora or full.")
@pass_context
def tune(ctx: Context, *, model: str, no_use: bool, method: "Method", minutes: float) -> None:
    """Fit the model to this site's labelled rows, and serve what was fitted when it is surely better."""
    site = _open(ctx.home)
    if method != "head":
        os.nice(_NICE)
    try:
        outcome = site.tuner.tune(model, use=not no_use, method=method, limit_s=minutes * 60)
    finally:
        site.close()
    record = outcome.kept.record
    view = TuneView(
        adapter=record.name,
        model=record.model,
        version=record.version,
        base=record.base,
        method=record.method,
        rows=record.rows,
        penalty=record.penalty,
        gate=record.gate,
        accepted=True,
        reason=_reason(record.gate),
        shadow=record.shadow,
        serving=outcome.serving,
    )
    emit(ctx, view, _show_tuned)


@click.group()
def adapter() -> None:
    """Locally tuned heads and models: list, use, erase. They never leave this site."""


@adapter.command("list")
@click.option("--model", help="Of one model only.")
@pass_context
def list_(ctx: Context, *, model: str | None) -> None:
    """The stored adapters, and which one answers."""
    from spoke_agent.site.slots import read_slots

    site = _open(ctx.home)
    try:
        slots = read_slots(ctx.home / "slots.json").models
        rows = [
            {
                "name": k.record.name,
                "model": k.record.model,
                "version": k.record.version,
                "method": k.record.method,
                "created": k.record.created.isoformat(),
                "rows": k.record.rows,
                "before": k.record.gate.before,
                "after": k.record.gate.after,
                "trusted": k.trusted,
                "in_use": (stage := _stage(slots.get(k.record.model), k.record.name)) != "shelf",
                "stage": stage,
                "shadow": k.record.shadow.plain,
            }
            for k in site.tuner.adapter_store.all(model)
        ]
    finally:
        site.close()
    emit(ctx, rows, _show_list)


@adapter.command("use")
@click.option("--model", required=True, help="Name of the model.")
@click.argument("name", required=False)
@click.option("--none", "nothing", is_flag=True, help="Go back to the hub's own head.")
@pass_context
def use(ctx: Context, *, model: str, name: str | None, nothing: bool) -> None:
    """Make one adapter answer by default, or none."""
    if (name is None) != nothing:
        raise click.UsageError("give the NAME of an adapter, or --none")
    site = _open(ctx.home)
    try:
        serving = site.tuner.use(model, name)
    finally:
        site.close()
    if not serving:
        talk.print("the server is not running; it will follow when it starts")
    emit(ctx, {"model": model, "adapter": name, "serving": serving}, lambda v: out.print(f"{model}: {name or 'the hub head'}"))


@adapter.command("erase")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Only say what would be erased.")
@pass_context
def erase(ctx: Context, *, name: str, dry_run: bool) -> None:
    """Remove an adapter for good; the hub's own head answers instead."""
    site = _open(ctx.home)
    try:
        record = site.tuner.adapter_store.get(name).record
        if not dry_run:
            site.tuner.erase(name)
    finally:
        site.close()
    emit(
        ctx,
        {"erased": not dry_run, "adapter": record.name},
        lambda v: out.print(f"{name}: {'would be ' if dry_run else ''}erased"),
    )


def _stage(model_slots: "ModelSlots | None", name: str) -> str:
    """`adapter_store` (answers only whom asks for it), `probation` or `default`."""
    used = model_slots.adapter if model_slots is not None else None
    if used is None or used.name != name:
        return "shelf"
    return "probation" if used.probation else "default"


def _reason(gate: GateVerdict) -> str:
    return (
        f"right on {gate.rows} rows it never saw: {gate.before:.1%} before, {gate.after:.1%} after (p = {gate.p:.2g}); "
        f"on the hub's own rows {gate.anchors_before:.1%} before, {gate.anchors_after:.1%} after"
    )


def _show_tuned(view: TuneView) -> None:
    out.print(f"{view.adapter}: fitted on {view.rows} rows of this site")
    out.print(f"  {view.reason}")
    seen = view.shadow
    out.print(f"  in shadow: of {seen.rows} rows that callers sent last, {seen.changed} would have been answered otherwise")
    out.print("  it answers now, in probation until labels have confirmed it" if view.serving else "  it does not answer yet")


def _show_list(rows: list[dict[str, Any]]) -> None:
    table(
        ["adapter", "model", "version", "method", "rows", "before", "after", "stage", "whole"],
        [
            [
                r["name"],
                r["model"],
                r["version"],
                r["method"],
                r["rows"],
                f"{r['before']:.3f}",
                f"{r['after']:.3f}",
                r["stage"],
                "yes" if r["trusted"] else "NO",
            ]
            for r in rows
        ],
    )

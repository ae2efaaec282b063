"""`spoke data`: the site's own rows: what is kept, bringing more in, and erasing for good."""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from model_formats.core.console import Context, emit, out, pass_context, table

__all__ = ["group"]


@click.group()
def group() -> None:
    """Rows, predictions and labels of this site. Encrypted, bounded, and never sent."""


@group.command("list")
@pass_context
def list_(ctx: Context) -> None:
    """How much is kept, by model and version."""
    from spoke_agent.data.store import open_data

    store = open_data(ctx.home)
    try:
        found = store.summary()
    finally:
        store.close()
    emit(ctx, found, _show)


@group.command("import")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--model", required=True, help="The model whose contract the rows follow.")
@click.option("--dry-run", is_flag=True, help="Only check the files.")
@pass_context
def import_(ctx: Context, *, path: Path, model: str, dry_run: bool) -> None:
    """Bring in rows (and labels) from CSV, npz, Parquet or a folder of them. The champion answers them first.

    A table has the contract's column names, or INPUT.0, INPUT.1, ...; an npz has one array per input. Labels are under `label`.
    """
    from spoke_agent.daemon.data_commands import bring_in

    value = bring_in(ctx.home, model, path, batch_name=secrets.token_hex(6), now=datetime.now(UTC), dry_run=dry_run)
    emit(
        ctx, value, lambda v: out.print(f"{v['rows']} rows, {v['labelled']} with labels{' would be' if dry_run else ''} imported")
    )


@group.command("erase")
@click.option("--subject", "subjects", multiple=True, help="A request id; may be given again.")
@click.option("--before", type=click.DateTime(), help="Everything older than this (UTC).")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--dry-run", is_flag=True, help="Only say how many rows would go.")
@pass_context
def erase(ctx: Context, *, subjects: tuple[str, ...], before: datetime | None, everything: bool, dry_run: bool) -> None:
    """Erase rows and all that was made from them (adapters, sums), with a signed record."""
    if sum((bool(subjects), before is not None, everything)) != 1:
        raise click.UsageError("give one of --subject, --before or --all")
    from spoke_agent.daemon.data_commands import erase_at

    moment = before.replace(tzinfo=UTC) if before else None
    record = erase_at(ctx.home, subjects, moment, everything=everything, dry_run=dry_run)
    emit(ctx, record, _show_erased)


def _show(rows: list[dict[str, Any]]) -> None:
    table(
        ["model", "version", "rows", "labelled", "right", "from", "to", "MB"],
        [
            [
                r["model"],
                r["version"],
                r["rows"],
                r["labelled"],
                r["correct"] or 0,
                _day(r["first"]),
                _day(r["last"]),
                f"{r['bytes'] / 2**20:.1f}",
            ]
            for r in rows
        ],
    )


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _show_erased(record: dict[str, Any]) -> None:
    if record.get("dry_run"):
        out.print(f"{record['rows']} rows would be erased, and every adapter that was fitted on one of them")
        return
    adapters = f", and the adapters {', '.join(record['adapters'])}" if record["adapters"] else ""
    fresh = f"; fitted anew on what is left: {', '.join(record['retrained'])}" if record.get("retrained") else ""
    out.print(f"{record['rows']} rows erased{adapters}{fresh}; the signed record is in erasures/")

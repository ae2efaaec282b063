"""`hub backup` and `hub restore`."""

from dataclasses import asdict
from pathlib import Path

import click

from hub.app.backup import Restored, back_up
from hub.app.backup import restore as restore_hub
from hub.config.settings import load_settings
from hub.context import HubContext
from model_formats.core.console import Context, emit, out, pass_context

__all__ = ["backup", "restore"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--offline-keys", is_flag=True, help="Put the offline keys (root, targets, model families) in as well.")
@click.option("--without-database", is_flag=True, help="Leave the database out: PostgreSQL has its own tools.")
@pass_context
def backup(ctx: Context, file: Path, *, offline_keys: bool, without_database: bool) -> None:
    """Write the whole hub to FILE; it may be running. The file holds private keys."""
    hub = HubContext.open(ctx.home, load_settings(ctx.home))
    try:
        size = back_up(hub, file, offline_keys=offline_keys, database=not without_database)
    finally:
        hub.close()
    emit(ctx, {"file": str(file), "bytes": size}, lambda _: out.print(f"{file}: {size} bytes. Keep it as you keep the keys."))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@pass_context
def restore(ctx: Context, file: Path) -> None:
    """Make the hub again from FILE, in an empty folder. Its spokes follow it: it counts on from above all they have seen."""
    done = restore_hub(ctx.home, file)
    emit(ctx, {"home": str(ctx.home), **asdict(done)}, lambda _: _tell(ctx, done))


def _tell(ctx: Context, done: Restored) -> None:
    out.print(f"The hub is in {ctx.home}, with {done.spokes} spokes. Start it with [bold]hub up[/].")
    out.print(f"Open enrolment codes are void ({done.codes_void}). Do again what was done since the backup: revocations first,")
    out.print("then enrolments, releases and denials. Roles that were signed since need a higher version than spokes have seen.")

"""`hub registry`: where the blobs are, and collecting those that nobody needs."""

from dataclasses import asdict
from typing import Any

import click

from hub.config.settings import load_settings
from hub.context import HubContext
from model_formats.core.console import Context, emit, out, pass_context

__all__ = ["group"]


@click.group("registry")
def group() -> None:
    """Look after the blobs of this hub."""


@group.command()
@pass_context
def show(ctx: Context) -> None:
    """Where blobs are kept, how many there are, and how much of them is in the hub's folder."""
    hub = HubContext.open(ctx.home, load_settings(ctx.home))
    try:
        contents = hub.registry.contents
        here = [file.stat().st_size for file in contents.folder.iterdir()]
        told = {
            "kept_at": hub.settings.registry_url or str(contents.folder),
            "repositories": hub.registry.repositories(),
            "blobs": len(contents.known()),
            "blobs_here": len(here),
            "bytes_here": sum(here),
        }
    finally:
        hub.close()
    emit(ctx, told, _show)


@group.command()
@click.option("--grace-hours", type=click.FloatRange(0), default=24.0, show_default=True, help="Leave what was wanted so lately.")
@click.option("--dry-run", is_flag=True, help="Only tell how much would go.")
@pass_context
def collect(ctx: Context, *, grace_hours: float, dry_run: bool) -> None:
    """Remove manifests and blobs that no tag and no released version needs, with their orphaned referrers. The hub may run."""
    from hub.registry.garbage_collect import collect as collect_now
    from hub.services.zone_blobs import needed

    hub = HubContext.open(ctx.home, load_settings(ctx.home))
    try:
        done = collect_now(hub.registry, needed(hub), grace_s=grace_hours * 3600, dry_run=dry_run)
    finally:
        hub.close()
    emit(ctx, {**asdict(done), "dry_run": dry_run}, _tell)


def _show(told: dict[str, Any]) -> None:
    out.print(f"{told['blobs']} blobs of {len(told['repositories'])} repositories are kept at {told['kept_at']}")
    out.print(f"{told['blobs_here']} of them are in the hub's folder: {told['bytes_here'] >> 20} MiB")


def _tell(done: dict[str, Any]) -> None:
    verb = "would go" if done["dry_run"] else "are gone"
    out.print(f"{done['manifests']} manifests and {done['blobs']} blobs ({done['bytes'] >> 20} MiB) {verb}")

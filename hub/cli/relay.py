"""`hub relay`: a broker for a region, so that its spokes draw one copy over the long link."""

from pathlib import Path

import click

from hub.app.worker_process import local_broker
from hub.config.home import HubHome
from hub.config.settings import load_settings
from hub.context import HubContext
from hub.services.relays import make_relay
from model_formats.core.console import Context, emit, out, pass_context
from provisioning.brokers.region import RelayConfig

__all__ = ["relay"]


@click.command()
@click.argument("name")
@click.option("--site", "sites", multiple=True, required=True, help="A site that it serves; may be given several times.")
@click.option("--host", "hosts", multiple=True, required=True, help="Name or address under which its spokes reach it.")
@click.option("--port", default=8883, show_default=True, type=click.IntRange(1, 65535), help="Port it listens on.")
@click.option("--hub-broker", metavar="HOST:PORT", help="The hub's broker as the relay sees it; default: as spokes do.")
@click.option("--place", default="/etc/spokeshave-relay", show_default=True, help="Where the folder will lie over there.")
@click.option("--out", "folder", type=click.Path(path_type=Path), required=True, help="Folder to write (it holds private keys).")
@pass_context
def relay(
    ctx: Context,
    name: str,
    sites: tuple[str, ...],
    hosts: tuple[str, ...],
    port: int,
    hub_broker: str | None,
    place: str,
    folder: Path,
) -> None:
    """Write the folder of the relay NAME: Mosquitto's configuration with its bridge, access list, keys and certificates.

    Carry it to the region's machine and start Mosquitto there. Run it again after enrolling or revoking spokes of its sites.
    """
    home = HubHome(ctx.home)
    hub = HubContext.open(ctx.home, load_settings(ctx.home))
    try:
        config = RelayConfig(name, local_broker(home, hub_broker), hosts, port, place)
        files = make_relay(hub, config, sites, folder, who="operator")
    finally:
        hub.close()
    told = {"relay": name, "folder": str(folder), "files": [str(f.relative_to(folder)) for f in files]}
    emit(
        ctx,
        told,
        lambda _: out.print(f"{folder} is for {name}: carry it to {place} there, then mosquitto -c {place}/mosquitto.conf"),
    )

"""`hub init` and `hub up`: make a hub, run it."""

import logging
import signal
import threading
from typing import TYPE_CHECKING

import click

from hub.config.home import HubHome
from model_formats.core.console import Context, emit, out, pass_context, talk
from model_formats.core.logging import log_to_stderr

if TYPE_CHECKING:
    from hub.app.hub_process import HubServer

__all__ = ["init", "up"]


@click.command()
@click.option("--host", help="Name under which spokes reach this hub.")
@click.option("--zone", "zones", multiple=True, help="Residency zone to serve; may be given several times.")
@pass_context
def init(ctx: Context, host: str | None, zones: tuple[str, ...]) -> None:
    """Make a hub: keys (root 2 of 3, targets, snapshot, timestamp, director), device CA, database, operator token."""
    from hub.config.settings import load_settings
    from hub.context import found

    home = HubHome(ctx.home)
    settings = load_settings(ctx.home, host=host, zones=zones or None)
    found(ctx.home, settings)
    if host or zones:
        lines = [f'host = "{settings.host}"', f"zones = {list(settings.zones)!r}".replace("'", '"')]
        home.settings.write_text("\n".join(lines) + "\n")
    made = {"home": str(ctx.home), "keys": str(home.keys), "token": str(home.token), "zones": list(settings.zones)}
    emit(ctx, made, lambda _: _tell_made(home))


@click.command()
@click.option("--host", help="Name under which spokes reach this hub.")
@click.option("--bind", help="Address to listen on; 0.0.0.0 opens the hub to the network.")
@click.option("--https-port", type=int, help="Port of API and registry; 0 keeps the one of last time, or takes a free one.")
@click.option("--mqtt-port", type=int, help="Port of the broker; 0 likewise.")
@pass_context
def up(ctx: Context, host: str | None, bind: str | None, https_port: int | None, mqtt_port: int | None) -> None:
    """Run the hub until it is told to stop: Mosquitto, API and registry over HTTPS, rollouts."""
    from hub.app.lock import require_free
    from hub.config.settings import load_settings

    home = HubHome(ctx.home)
    settings = load_settings(ctx.home, host=host, bind=bind, https_port=https_port, mqtt_port=mqtt_port)
    require_free(home)
    from hub.app.hub_process import HubServer  # the whole server: only where it is going to run

    log_to_stderr(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with HubServer(home, settings) as server:
        emit(ctx, server.address.plain, lambda _: _tell_up(server))
        stop.wait()
        talk.print("stopping")


def _tell_made(home: HubHome) -> None:
    out.print(f"A hub is in {home.root}. Start it with [bold]hub up[/].")
    out.print(f"Keep the offline keys (root-*, targets, model-*) in {home.keys} somewhere else once you are set up.")


def _tell_up(server: "HubServer") -> None:
    address = server.address
    out.print(f"API and registry  {address.url}")
    out.print(f"broker            {address.broker_host}:{address.broker_port} (MQTT 5, client certificates)")
    out.print("Invite a spoke with [bold]hub spoke invite SITE --zone ZONE --regime REGIME[/]. Stop with Ctrl-C.")

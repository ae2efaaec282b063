"""`hub worker`: one more process for a hub that runs."""

import logging
import signal
import threading

import click

from hub.config.home import HubHome
from model_formats.core.console import Context, emit, out, pass_context, talk
from model_formats.core.logging import log_to_stderr

__all__ = ["worker"]


@click.command()
@click.option("--broker", metavar="HOST:PORT", help="The hub's broker; default: that of the hub which runs in this folder.")
@pass_context
def worker(ctx: Context, broker: str | None) -> None:
    """Share the work of a running hub: what spokes send, rollouts, blocks. Shares its database, folder and broker; no HTTPS."""
    from hub.app.worker_process import HubWorker
    from hub.config.settings import load_settings

    log_to_stderr(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with HubWorker(HubHome(ctx.home), load_settings(ctx.home), broker=broker) as running:
        emit(ctx, {"worker": running.name}, lambda _: out.print(f"{running.name} is at work. Stop with Ctrl-C."))
        stop.wait()
        talk.print("stopping")

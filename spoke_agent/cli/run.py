"""`spoke run` (agent and server together) and `spoke agent` (the agent alone)."""

import os
import signal
import sys

import click

from model_formats.core.console import Context, pass_context, talk
from model_formats.core.logging import log_to_stderr

__all__ = ["agent", "run"]


@click.command()
@click.option("--host", help="Address the server listens on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port of the server; 0 takes a free one.")
@click.option("--offline", is_flag=True, help="No network: live on sideloaded bundles.")
@pass_context
def run(ctx: Context, *, host: str | None, port: int | None, offline: bool) -> None:
    """Run this spoke: the agent and the server, as two processes that are started again when they fall.

    The server's port is in HOME/run/server.port. Ends at SIGTERM or Ctrl-C.
    """
    from provisioning.identity.identity import Identity
    from spoke_agent.daemon.status import refuse_second_agent
    from spoke_agent.daemon.supervisor import Supervisor, commands
    from spoke_agent.site.home import SpokeHome
    from spoke_agent.site.settings import load_settings

    home = SpokeHome(ctx.home)
    identity = Identity.load(ctx.home)
    refuse_second_agent(home)
    settings = load_settings(home, serve_host=host, serve_port=port)
    log_to_stderr()
    talk.print(f"spoke {identity.spoke} starts; stop it with Ctrl-C")
    serve = ["--host", settings.serve_host, "--port", str(settings.serve_port)]
    children = commands(ctx.home, agent=["--offline"] if offline else [], serve=serve)
    sys.exit(Supervisor(home.run, children).run())


@click.command()
@click.option("--offline", is_flag=True, help="No network: live on sideloaded bundles.")
@pass_context
def agent(ctx: Context, *, offline: bool) -> None:
    """Run the agent alone: directives, transfer, trust, reports. Models are served by `spoke serve`."""
    from spoke_agent.daemon.local_commands import commands_of
    from spoke_agent.daemon.local_socket import LocalServer
    from spoke_agent.daemon.wiring import assemble
    from spoke_agent.site.core_dumps import forbid_core_dumps
    from spoke_agent.site.home import SpokeHome
    from spoke_agent.site.network_watch import watch, who_may_be_called
    from spoke_agent.site.settings import load_settings

    log_to_stderr()
    forbid_core_dumps()
    home = SpokeHome(ctx.home)
    settings = load_settings(home)
    with assemble(home, settings, offline=offline) as components:
        hub = components.identity.document.hub
        watch(home, "agent", () if offline else who_may_be_called(hub, settings.may_call, os.environ), resolves=not offline)
        local_server = LocalServer(home.agent_socket, commands_of(components))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: components.agent.stop())
        local_server.open()
        talk.print(f"agent of {components.identity.spoke} runs")
        try:
            components.agent.run()
        finally:
            local_server.close()

"""`spoke serve`: the serving process, alone."""

import gc
import os
import sys
from pathlib import Path

import click

from model_formats.core.console import Context, pass_context
from model_formats.core.logging import log_to_stderr
from spoke_agent.site.home import SpokeHome

__all__ = ["serve"]


@click.command()
@click.option("--host", help="Address to listen on (default: setting serve_host, 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port; 0 takes a free one (default: setting serve_port, 0).")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Also serve gRPC on this port (extra grpc); 0 takes a free one.")
@click.option("--no-tcp", is_flag=True, help="Only the unix socket HOME/run/server.sock.")
@click.option("--tls-certificate", type=click.Path(exists=True, path_type=Path), help="PEM certificate chain: serve HTTPS.")
@click.option("--tls-key", type=click.Path(exists=True, path_type=Path), help="PEM key, when it is not in the same file.")
@click.option(
    "--token-file", type=click.Path(exists=True, path_type=Path), help="File with the bearer token TCP callers must send."
)
@click.option("--no-capture", is_flag=True, help="Keep no rows: no drift, no labels, no tuning from this traffic.")
@click.option("--access-log", is_flag=True, help="Log one line of JSON for each answer (setting serve_access_log).")
@click.option(
    "--without-cache",
    multiple=True,
    type=click.Choice(["heads", "templates"]),
    help="Remember no HTTP heads, or no words of JSON requests: answers stay the same and cost more. For measuring.",
)
@click.option("--memory-mb", type=click.IntRange(min=32), help="Refuse models that would take all workers beyond.")
@click.option("--workers", type=click.IntRange(1, 64), help="Server processes on one port (default: setting serve_workers, 1).")
@pass_context
def serve(
    ctx: Context,
    *,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    no_tcp: bool,
    tls_certificate: Path | None,
    tls_key: Path | None,
    token_file: Path | None,
    no_capture: bool,
    access_log: bool,
    without_cache: tuple[str, ...],
    memory_mb: int | None,
    workers: int | None,
) -> None:
    """Serve the models that slots.json names, by the Open Inference Protocol v2, until stopped.

    The port is written to HOME/run/server.port, that of gRPC to HOME/run/grpc.port. No agent is needed.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: the models bring their own threads
    gc.disable()  # until the server is settled: what a start makes, stays
    from spoke_agent.server.app.server import InferenceServer, serve_many
    from spoke_agent.server.app.server import serve as run
    from spoke_agent.server.caches import CACHES
    from spoke_agent.server.settings import ServeSettings
    from spoke_agent.site.core_dumps import forbid_core_dumps
    from spoke_agent.site.network_watch import watch
    from spoke_agent.site.settings import load_settings

    log_to_stderr()
    forbid_core_dumps()
    given = {"serve_host": host, "serve_port": port, "serve_grpc_port": grpc_port, "serve_access_log": access_log or None}
    given["serve_workers"] = workers
    told = load_settings(SpokeHome(ctx.home), **given)
    settings = ServeSettings(
        home=ctx.home,
        host=told.serve_host,
        port=None if no_tcp else told.serve_port,
        grpc_port=told.serve_grpc_port,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        token_file=token_file,
        capture=not no_capture,
        access_log=told.serve_access_log,
        caches=tuple(cache for cache in CACHES if cache not in without_cache),
        memory_mb=memory_mb,
        workers=told.serve_workers,
        may_call=told.may_call,
    )
    watch(settings.folder, "server", settings.may_call, resolves=bool(settings.may_call))
    if settings.workers > 1:
        gc.enable()  # the parent settles nothing
        sys.exit(serve_many(settings, ready=lambda found: click.echo(f"{settings.workers} workers on port {found}", err=True)))

    def ready(server: InferenceServer) -> None:
        where = f"port {server.port}" if server.port is not None else "the unix socket only"
        where += f", gRPC on port {server.grpc_port}" if server.grpc_port is not None else ""
        click.echo(f"serving {', '.join(server.models.live) or 'no model yet'} on {where}", err=True)

    run(settings, ready=ready)

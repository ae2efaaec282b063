"""`spoke sideload`: bring a bundle in without a network, and write the receipts for the way back."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model_formats.core.console import Context, emit, out, pass_context, talk

if TYPE_CHECKING:
    from spoke_agent.site.home import SpokeHome

__all__ = ["group"]


@click.group(name="sideload")
def group() -> None:
    """Bring models in by file, and receipts out, without any network."""


@group.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@pass_context
def apply(ctx: Context, *, file: Path) -> None:
    """Check FILE (from `hub bundle export`), apply it, and tell what changed.

    A running agent does the work; without one it is done here, with a server started for as long as it takes.
    """
    from spoke_agent.daemon.status import agent_runs, read_status
    from spoke_agent.site.home import SpokeHome

    home = SpokeHome(ctx.home)
    taken = _by_agent(home, file) if agent_runs(home) else _here(home, file)
    status = read_status(home, lines=0)
    emit(ctx, {**taken, "models": [asdict(m) for m in status.models]}, _show)


@group.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@pass_context
def receipts(ctx: Context, *, file: Path) -> None:
    """Write FILE: signed reports, and what the outbox lets out. Carry it to the hub (`hub receipts import`)."""
    from provisioning.identity.identity import Identity
    from spoke_agent.daemon.maintenance import open_outbox
    from spoke_agent.daemon.sideload import make_receipts
    from spoke_agent.server_api.client import ControlClient
    from spoke_agent.site.home import SpokeHome
    from spoke_agent.update.journal import Journal
    from sync.core.clock import SystemClock

    home, identity, clock = SpokeHome(ctx.home), Identity.load(ctx.home), SystemClock()
    journal, server = Journal(home.journal), ControlClient(home.control_socket, timeout_s=5)
    directive = journal.directive()
    outbox = open_outbox(ctx.home, identity, clock, bus=None, ceiling=lambda: directive.egress if directive else None)
    try:
        written = make_receipts(file, identity, journal, server, outbox, clock)
    finally:
        outbox.close()
        server.close()
        journal.close()
    kinds = [message.kind for message in written.messages]
    summary = {"file": str(file), "number": written.number, "messages": {k: kinds.count(k) for k in sorted(set(kinds))}}
    emit(ctx, summary, _show_receipts)


def _show_receipts(summary: Mapping[str, Any]) -> None:
    held = ", ".join(f"{count} {kind}" for kind, count in summary["messages"].items())
    out.print(f"receipts {summary['number']} in [bold]{summary['file']}[/]: {held or 'nothing to say'}")


def _by_agent(home: "SpokeHome", file: Path) -> dict[str, Any]:
    from spoke_agent.daemon.local_socket import call_agent

    chain: list[str] = []
    done: Any = {}
    for answer in call_agent(home.agent_socket, "sideload", path=str(file.resolve())):
        done = answer
        _tell(answer, chain)
    return {**done, "chain": chain}


def _here(home: "SpokeHome", file: Path) -> dict[str, Any]:
    from spoke_agent.daemon.sideload import follow_through, take_in, taken_in
    from spoke_agent.daemon.supervisor import borrowed_server
    from spoke_agent.daemon.wiring import assemble
    from spoke_agent.site.settings import load_settings
    from spoke_agent.update.journal import as_line
    from sync.core.clock import SystemClock

    chain: list[str] = []
    settings = load_settings(home)
    with assemble(home, settings, offline=True, inline=True) as parts, borrowed_server(home):
        applied = take_in(parts, file, progress=lambda done, total: _tell({"bytes": done, "of": total}, chain))
        follow_through(parts, applied, SystemClock(), lambda entry: _tell(as_line(entry), chain), settings.tick_s)
    return {**asdict(taken_in(applied)), "chain": chain}


def _tell(line: object, chain: list[str]) -> None:
    if isinstance(line, Mapping) and "state" in line:
        chain.append(str(line["state"]))
        why = "" if line["reason"] == "none" else f" ({line['reason']})"
        talk.print(f"  {line['model']}@{line['version']}: {line['state']}{why}")
    elif isinstance(line, Mapping) and "of" in line and line["of"] and line["bytes"] == line["of"]:
        talk.print(f"  {line['of']:,} bytes read and checked")


def _show(result: Mapping[str, Any]) -> None:
    out.print(f"directive {result['generation']}: {', '.join(result['wanted'])}; {result['new_bytes']:,} new bytes")
    for model in result["models"]:
        if model["serving"] is None and model["champion"] is not None:
            now = f"version {model['champion']} is in place; `spoke run` serves it"
        else:
            now = f"serving version {model['serving'] or '-'}"
        out.print(f"  {model['model']}: {now}, last good {model['last_good'] or '-'}")

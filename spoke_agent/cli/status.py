"""`spoke status` and `spoke doctor`: the state of this spoke, and what to do where something is wrong."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from model_formats.core.console import Context, emit, out, pass_context, table

if TYPE_CHECKING:
    from model_formats.core.check_result import CheckResult
    from spoke_agent.daemon.status import ModelStatus, SpokeStatus

__all__ = ["doctor", "status"]


@click.command()
@click.option("--lines", default=10, show_default=True, help="Lines of history.")
@click.option("--plan", is_flag=True, help="Show the steps that lie ahead of each model, too.")
@pass_context
def status(ctx: Context, *, lines: int, plan: bool) -> None:
    """What this spoke serves, what it is asked for, and how far it is. Works with and without a running agent."""
    from spoke_agent.cli.plan import show_plan
    from spoke_agent.daemon.plan import read_plan
    from spoke_agent.daemon.status import ask_agent, read_status
    from spoke_agent.site.home import SpokeHome

    home = SpokeHome(ctx.home)
    found = read_status(home, lines=lines)
    agent, ahead = ask_agent(home), read_plan(home) if plan else ()
    view = {**_plain(found), **agent, **({"plan": [p.plain for p in ahead]} if plan else {})}

    def show(_view: object) -> None:
        _show(found, agent)
        show_plan(ahead)

    emit(ctx, view, show)


@click.command()
@pass_context
def doctor(ctx: Context) -> None:
    """Look for what ails this spoke, and say what to do. Exit status 6 when something must be done."""
    from spoke_agent.doctor import examine
    from spoke_agent.site.home import SpokeHome

    findings = examine(SpokeHome(ctx.home))
    emit(ctx, {"findings": [_ailment(f) for f in findings], "ok": not findings}, lambda _: _tell(findings))
    if findings:
        raise click.exceptions.Exit(6)


def _plain(found: "SpokeStatus") -> dict[str, Any]:
    """For `--json`."""
    models = [{**asdict(m), "passed_over": [p.plain for p in m.passed_over]} for m in found.models]
    return {**asdict(found), "models": models}


def _show(found: "SpokeStatus", agent: Mapping[str, Any]) -> None:
    here = f"agent {'runs' if found.agent else 'is down'}, server {'runs' if found.server else 'is down'}{_link(agent)}"
    cpu = f"CPU class {found.cpu_class}"
    out.print(f"[bold]{found.spoke}[/] in zone {found.zone} ({found.regime}); {here}; directive {found.generation}; {cpu}")
    table(
        ["model", "serving", "last good", "wanted", "state", "reason", "challenger", "adapter", "variant", "engine"],
        [
            (m.model, m.serving, m.last_good, m.wanted, m.state, _unless_none(m.reason), _share(m), m.adapter, m.variant, _way(m))
            for m in found.models
        ],
    )
    for m in found.models:
        for passed in m.passed_over:
            out.print(f"  {m.model}@{m.wanted} passed over {passed.variant} here: {passed.reason}", markup=False)
    for model, why in agent.get("waiting", {}).items():
        out.print(f"  {model} waits: {why}", markup=False)
    if agent.get("last_refusal"):
        out.print(f"  last refused: {agent['last_refusal']}", markup=False)
    for model, file in agent.get("arriving", {}).items():
        out.print(f"  {model}: {file['bytes']:,} of {file['of']:,} bytes of the file that is on its way are here")
    for entry in found.history:
        why = _unless_none(entry.reason)
        out.print(f"  {entry.time:%Y-%m-%d %H:%M:%S}  {entry.model}@{entry.version}  {entry.previous} -> {entry.state}  {why}")


def _link(agent: Mapping[str, Any]) -> str:
    if not agent:
        return ""
    return ", offline" if agent.get("offline") else ", connected" if agent.get("connected") else ", no connection to the hub"


def _ailment(finding: "CheckResult") -> dict[str, str]:
    """For `--json`."""
    return {"ailment": finding.check, "issue": finding.found, "remedy": finding.advice}


def _tell(findings: "list[CheckResult]") -> None:
    from rich.text import Text

    if not findings:
        out.print("nothing ails this spoke")
    for finding in findings:
        out.print(Text.assemble((finding.check, "bold"), f": {finding.found}"))
        out.print(Text(f"  {finding.advice}"))


def _share(model: "ModelStatus") -> str:
    return f"{model.challenger} ({model.challenger_percent} %)" if model.challenger else ""


def _way(model: "ModelStatus") -> str:
    return f"{model.engine or ''}{' (exact)' if model.mode == 'exact' else ''}"


def _unless_none(reason: str) -> str:
    return "" if reason == "none" else reason

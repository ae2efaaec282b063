"""`spoke egress`: what left this site, in plain words and to the byte; and the switch that stops everything."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from model_formats.core.console import Context, emit, out, pass_context, talk

__all__ = ["group"]


@click.group()
def group() -> None:
    """What left this site, what stayed, and why."""


@group.command()
@click.option("--days", type=float, default=30.0, show_default=True, help="How far back.")
@click.option("--refused/--no-refused", default=True, help="Also what wanted to leave and was kept.")
@click.option("--exact", is_flag=True, help="With the exact payload of each record.")
@pass_context
def show(ctx: Context, *, days: float, refused: bool, exact: bool) -> None:
    """Every record in order: when, what it says, or why it stayed."""
    from spoke_agent.outbox.explain import line, payload

    log = _log(ctx.home)
    try:
        found = list(log.entries(since=datetime.now(UTC) - timedelta(days=days), refused=refused))
    finally:
        log.close()
    rows = [
        {
            "sequence": logged.entry.sequence,
            "kind": logged.entry.asked,
            "decision": "allow" if logged.record else "deny",
            "rule": logged.entry.why.value,
            "entry": logged.entry.plain,
            "words": line(logged),
            "sent": logged.sent,
            "record": logged.record.plain if logged.record else None,
            "payload": payload(logged.record) if exact and logged.record else None,
        }
        for logged in found
    ]
    emit(ctx, rows, _show)


@group.command()
@pass_context
def verify(ctx: Context) -> None:
    """Follow both chains through the log from its first entry, and against the hub's receipts; exit 6 when a link is broken."""
    log = _log(ctx.home)
    try:
        totals = log.verify()
    finally:
        log.close()
    value = {
        "ok": True,
        "entries": totals.entries,
        "left": totals.left,
        "refused": totals.refused,
        "waiting": totals.waiting,
        "receipted": totals.receipted,
        "head": totals.head,
    }
    emit(ctx, value, lambda v: out.print(_WHOLE.format(**v), markup=False))


@group.command()
@click.argument("sequence", type=int)
@pass_context
def explain(ctx: Context, *, sequence: int) -> None:
    """One entry of the log: which rule decided, under which policy, and what exactly was said."""
    from spoke_agent.outbox.explain import REASONS, meaning, payload

    log = _log(ctx.home)
    try:
        logged = next((found for found in log.entries() if found.entry.sequence == sequence), None)
    finally:
        log.close()
    if logged is None:
        raise click.UsageError(f"there is no entry {sequence}; `spoke egress show` lists them")
    entry = logged.entry
    value = {
        "sequence": entry.sequence,
        "kind": entry.asked,
        "left": logged.record is not None,
        "rule": entry.why.value,
        "because": REASONS[entry.why],
        "policy": entry.policy,
        "rows": entry.rows,
        "bytes": entry.bytes,
        "says": meaning(logged.record) if logged.record else None,
        "payload": payload(logged.record) if logged.record else None,
    }
    emit(ctx, value, _show_fields)


@group.command()
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write into.")
@click.option("--days", type=float, help="How far back; the whole log when not given.")
@pass_context
def pack(ctx: Context, *, folder: Path, days: float | None) -> None:
    """Evidence for an auditor: policies, ledger, counts, refusals, records and the state of the chain, as JSON and as a page."""
    from provisioning.identity.identity import Identity
    from spoke_agent.outbox.audit_pack import make_pack, write_pack

    identity, now = Identity.load(ctx.home), datetime.now(UTC)
    log = _log(ctx.home)
    try:
        since = None if days is None else (now - timedelta(days=days)).replace(microsecond=0)
        made = make_pack(log, identity.spoke, identity.regime, now, since=since)
    finally:
        log.close()
    files = write_pack(made, folder)
    value = {
        "files": [str(f) for f in files],
        "digest": made.digest,
        "chain": made.chain.plain,
        "left": len(made.records),
        "refused": sum(d.times for d in made.denials),
        "policies": len(made.policies),
    }
    emit(ctx, value, lambda v: out.print("\n".join(v["files"]), markup=False))


@group.command()
@pass_context
def policy(ctx: Context) -> None:
    """The policy in force: the site's own file, or the default."""
    from spoke_agent.outbox.policy import POLICY_FILE, load_policy
    from sync.protocol.egress import FLOORS

    site, regime = _who(ctx.home)
    found = load_policy(ctx.home, site, regime)
    if not (ctx.home / POLICY_FILE).exists():
        talk.print(f"no {POLICY_FILE}: the default holds")
    value = found.plain | {"digest": found.digest, "regime_allows": sorted(FLOORS[regime])}
    emit(ctx, value)


@group.command()
@click.argument("position", type=click.Choice(["normal", "verdict_only", "sealed"]))
@pass_context
def switch(ctx: Context, *, position: str) -> None:
    """The site's own switch for the outbox: let policy decide, only verdicts, or nothing. It holds at once.

    Signed reports on updates are not of the outbox and go on; docs/residency.md says what they tell.
    """
    from spoke_agent.outbox.policy import turn_switch

    site, regime = _who(ctx.home)
    found = turn_switch(ctx.home, site, regime, position)  # type: ignore[arg-type]
    emit(ctx, {"sovereignty": found.sovereignty, "policy": found.digest}, lambda v: out.print(f"{site}: {v['sovereignty']}"))


_WHOLE = "whole: {entries} entries, {left} left, {refused} stayed; the hub's receipts reach record {receipted}; head {head}"


def _log(home: Path) -> Any:
    from spoke_agent.outbox.egress_log import EgressLog

    return EgressLog(home / "egress.db")


def _who(home: Path) -> tuple[str, Any]:
    from provisioning.identity.identity import Identity

    identity = Identity.load(home)
    return identity.spoke.site, identity.regime


def _show_fields(value: dict[str, Any]) -> None:
    for key, item in value.items():
        if item is not None:
            out.print(f"{key}: {item}", markup=False)


def _show(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("nothing left this site, and nothing wanted to")
    for row in rows:
        out.print(row["words"], markup=False)
        if row["payload"]:
            out.print(f"   {row['payload']}", markup=False)

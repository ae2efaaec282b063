"""The evidence pack for an auditor, as JSON for machines and as a page for people.

It is made from the egress log and holds nothing that did not leave, besides refusals (kind, rule and time) and the site's own
policies. A broken chain does not stop it: the pack names the broken link.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar, Literal

from model_formats.core.document import Document, Value
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime, Digest, Name
from spoke_agent.outbox.egress_log import EgressLog, Logged
from spoke_agent.outbox.errors import LogBroken
from spoke_agent.outbox.explain import REASONS, meaning
from spoke_agent.outbox.policy import EgressRule, SitePolicy
from sync.core.types import Regime, SpokeId
from sync.protocol.egress import FLOORS, Kind

__all__ = ["EvidencePack", "make_pack", "write_pack"]


class PolicyVersion(Value):
    """A policy and when it first decided."""

    since: AwareDatetime
    digest: Digest
    policy: SitePolicy


class Chain(Value):
    """What following both chains through the whole log found."""

    whole: bool
    entries: int
    left: int
    refused: int
    waiting: int
    head: Digest | None
    """Of the last entry."""
    receipted: int = 0
    """Number of the last record for which the hub gave a signed receipt."""
    last_record: Digest | None
    """Compare it with the hub's last record of this spoke: a log cut off at its end shows there."""
    broken: str | None = None


class OfKind(Value):
    """One kind in the period."""

    asked: Kind
    left: int
    refused: int
    bytes: int


class Denial(Value):
    """Why things stayed."""

    asked: Kind
    rule: EgressRule
    times: int
    first: AwareDatetime
    last: AwareDatetime
    because: str


class LedgerDay(Value):
    """One day of the privacy ledger (thousandths of epsilon)."""

    day: str
    epsilon_milli: int


class LeftRecord(Value):
    """One record that left: where it stands in the log, its digest, and what it says."""

    sequence: int
    time: AwareDatetime
    asked: Kind
    model: Name | None
    policy: Digest | None
    record: Digest
    bytes: int
    sent: bool
    says: str


class EvidencePack(Document):
    """`evidence.json`."""

    max_bytes: ClassVar[int] = 256 << 20

    kind: Literal["egress-evidence"] = "egress-evidence"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    regime: Regime
    regime_allows: tuple[Kind, ...]
    made: AwareDatetime
    since: AwareDatetime | None
    """Start of the period for counts, denials, ledger and records; the chain is always followed from its first entry."""
    chain: Chain
    policies: tuple[PolicyVersion, ...]
    kinds: tuple[OfKind, ...]
    denials: tuple[Denial, ...]
    ledger: tuple[LedgerDay, ...]
    epsilon_30_days_milli: int
    records: tuple[LeftRecord, ...]


def make_pack(log: EgressLog, me: SpokeId, regime: Regime, now: datetime, *, since: datetime | None = None) -> EvidencePack:
    """Gather it. Reads only."""
    found = list(log.entries(since=since))
    return EvidencePack(
        site=me.site,
        spoke=me.spoke,
        regime=regime,
        regime_allows=tuple(sorted(FLOORS[regime])),
        made=now.replace(microsecond=0),
        since=since,
        chain=_chain(log),
        policies=tuple(
            PolicyVersion(since=first.replace(microsecond=0), digest=policy.digest, policy=policy)
            for first, policy in log.policies()
        ),
        kinds=tuple(_kinds(found)),
        denials=tuple(_denials(found)),
        ledger=tuple(_ledger(found)),
        epsilon_30_days_milli=sum(x.entry.epsilon_milli for x in log.entries(since=now - timedelta(days=30), refused=False)),
        records=tuple(_left(x) for x in found if x.record is not None),
    )


def write_pack(pack: EvidencePack, folder: Path) -> list[Path]:
    """Write `evidence.json` and `evidence.md`; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"evidence.json": pack.canonical(), "evidence.md": "\n".join(_page(pack)).encode() + b"\n"}
    for name, data in files.items():
        atomic_write(folder / name, data, mode=0o600)
    return [folder / name for name in files]


def _chain(log: EgressLog) -> Chain:
    _, last = log.last_record()
    try:
        totals = log.verify()
    except LogBroken as e:
        sequence, head = log.head()
        return Chain(whole=False, entries=sequence, left=0, refused=0, waiting=0, head=head, last_record=last, broken=e.message)
    return Chain(
        whole=True,
        entries=totals.entries,
        left=totals.left,
        refused=totals.refused,
        waiting=totals.waiting,
        head=totals.head,
        receipted=totals.receipted,
        last_record=last,
    )


def _kinds(found: Sequence[Logged]) -> list[OfKind]:
    return [
        OfKind(
            asked=kind,
            left=sum(x.record is not None for x in of_kind),
            refused=sum(x.record is None for x in of_kind),
            bytes=sum(x.entry.bytes for x in of_kind if x.record is not None),
        )
        for kind in sorted({x.entry.asked for x in found})
        if (of_kind := [x for x in found if x.entry.asked == kind])
    ]


def _denials(found: Sequence[Logged]) -> list[Denial]:
    stayed = [x.entry for x in found if x.record is None]
    denials = []
    for (kind, why), times in sorted(Counter((e.asked, e.why) for e in stayed).items()):
        of_rule = [e.time for e in stayed if (e.asked, e.why) == (kind, why)]
        denials.append(Denial(asked=kind, rule=why, times=times, first=min(of_rule), last=max(of_rule), because=REASONS[why]))
    return denials


def _ledger(found: Sequence[Logged]) -> list[LedgerDay]:
    days: Counter[str] = Counter()
    for x in found:
        if x.record is not None and x.entry.epsilon_milli:
            days[f"{x.entry.time:%Y-%m-%d}"] += x.entry.epsilon_milli
    return [LedgerDay(day=day, epsilon_milli=milli) for day, milli in sorted(days.items())]


def _left(x: Logged) -> LeftRecord:
    if x.record is None:
        raise ValueError("nothing left")
    return LeftRecord(
        sequence=x.entry.sequence,
        time=x.entry.time,
        asked=x.entry.asked,
        model=x.entry.model,
        policy=x.entry.policy,
        record=x.record.digest,
        bytes=x.entry.bytes,
        sent=x.sent,
        says=meaning(x.record),
    )


def _page(pack: EvidencePack) -> list[str]:
    chain, period = pack.chain, f"since {pack.since:%Y-%m-%d}" if pack.since else "since the first entry"
    state = f"whole: {chain.entries} entries, {chain.left} left, {chain.refused} stayed, {chain.waiting} wait"
    return [
        f"# What left {pack.site}/{pack.spoke}",
        "",
        f"Made {pack.made:%Y-%m-%d %H:%M} UTC, {period}.",
        f"Regime {pack.regime}, which allows at most: {', '.join(pack.regime_allows)}.",
        "",
        "## Is the log whole?",
        "",
        f"{state if chain.whole else 'BROKEN: ' + str(chain.broken)}",
        "",
        f"- last entry: `{chain.head}`",
        f"- receipts of the hub reach up to record {chain.receipted} of {chain.left}",
        f"- last record that left: `{chain.last_record}` (the hub must hold the same)",
        "",
        "## Policies that decided",
        "",
        *_table(
            ["from", "switch", "may leave", "smallest count", "digest"],
            [
                [
                    f"{p.since:%Y-%m-%d %H:%M}",
                    p.policy.sovereignty,
                    ", ".join(a.kind for a in p.policy.allow) or "nothing",
                    p.policy.min_cell,
                    f"`{p.digest}`",
                ]
                for p in pack.policies
            ],
        ),
        "## By kind",
        "",
        *_table(["kind", "left", "bytes", "stayed"], [[k.asked, k.left, k.bytes, k.refused] for k in pack.kinds]),
        "## What stayed, and why",
        "",
        *_table(
            ["kind", "times", "first", "last", "because"],
            [[d.asked, d.times, f"{d.first:%Y-%m-%d}", f"{d.last:%Y-%m-%d}", d.because] for d in pack.denials],
        ),
        "## Privacy ledger",
        "",
        f"Epsilon spent in the last 30 days: {pack.epsilon_30_days_milli / 1000:g}.",
        "",
        *_table(["day", "epsilon"], [[s.day, f"{s.epsilon_milli / 1000:g}"] for s in pack.ledger]),
        "## Every record that left",
        "",
        *_table(
            ["entry", "time (UTC)", "kind", "model", "bytes", "says", "digest"],
            [
                [r.sequence, f"{r.time:%Y-%m-%d %H:%M}", r.asked, r.model or "", r.bytes, r.says, f"`{r.record}`"]
                for r in pack.records
            ],
        ),
    ]


def _table(head: list[str], rows: Sequence[Sequence[object]]) -> list[str]:
    if not rows:
        return ["None.", ""]
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in row)} |" for row in lines] + [""]

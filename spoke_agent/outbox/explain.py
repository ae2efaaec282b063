"""Explains the log for people who answer for the data: what left, what it contains, and why it was allowed."""

from spoke_agent.outbox.egress_log import Logged
from spoke_agent.outbox.policy import EgressRule
from sync.protocol.egress import MERGED, DriftHist, DriftVerdict, EgressRecord, MaskedKey, MaskedSum, Ops, PerfEstimate, RffMean

__all__ = ["REASONS", "line", "meaning", "payload"]

REASONS: dict[EgressRule, str] = {
    EgressRule.ALLOWED: "site policy, hub ceiling and regime all allow it",
    EgressRule.POLICY_UNREADABLE: "the site's policy cannot be read, so nothing may leave",
    EgressRule.SEALED: "the site is sealed: nothing may leave",
    EgressRule.VERDICT_ONLY: "the site lets only verdicts and operations out",
    EgressRule.NOT_IN_SITE_POLICY: "the site's policy does not list this kind",
    EgressRule.NOT_IN_HUB_CEILING: "the hub does not want this kind",
    EgressRule.BELOW_REGIME_FLOOR: "the site's data-protection regime forbids this kind",
    EgressRule.TOO_FEW_ROWS: "it would speak of too few rows",
    EgressRule.NOTHING_LEFT_TO_SAY: "after merging small counts nothing was left",
    EgressRule.TOO_SOON: "another of its kind left a short while ago",
    EgressRule.TOO_LARGE: "it is larger than its kind may be",
    EgressRule.DAY_FULL: "the day's bytes are used up",
    EgressRule.LEDGER_EXHAUSTED: "the privacy budget is used up",
    EgressRule.WINDOW_OVERLAPS: "some of its rows were already counted in a record that left",
    EgressRule.NOT_SIGNED: "this spoke has no device key to sign with",
    EgressRule.FEATURE_NOT_ALLOWED: "the hub asks for columns that the site's policy does not list",
    EgressRule.PEERS_UNKNOWN: "fewer than ten of the sites that answer together are among the peers that this site knows",
    EgressRule.COHORT_TOO_SMALL: "fewer than ten different sites would answer together, so a sum could show one of them",
    EgressRule.COHORT_NOT_CERTIFIED: "a site that should answer together with this one is not certified by the device CA",
}


def line(logged: Logged) -> str:
    """One entry as a sentence."""
    entry = logged.entry
    what = f"{entry.asked} about {entry.model}" if entry.model else entry.asked
    when = f"{entry.time:%Y-%m-%d %H:%M}"
    if logged.record is None:
        return f"{entry.sequence}. {when}  STAYED  {what}: {REASONS[entry.why]}"
    state = "LEFT" if logged.sent else "WAITS"
    return f"{entry.sequence}. {when}  {state}  {what}, {entry.bytes} bytes: {meaning(logged.record)}"


def meaning(record: EgressRecord) -> str:
    """What a record tells the hub, and how much it hides."""
    body = record.body
    window = f"between {record.start:%H:%M} and {record.end:%H:%M}"
    if isinstance(body, DriftVerdict):
        moved = f", {len(body.features)} features stand out" if body.features else ""
        return f"the verdict on at least {body.rows} rows {window} is {body.level}{moved}"
    if isinstance(body, DriftHist):
        merged = sum(c == MERGED for f in body.features for c in f.counts)
        how = f"noise with epsilon {body.noise_epsilon_milli / 1000:g}" if body.noise_epsilon_milli else "no cell below 10"
        return f"counts of {len(body.features)} features {window}, {how}, rounded to {body.rounded_to}, {merged} cells merged"
    if isinstance(body, RffMean):
        return f"{len(body.mean)} averages over at least {body.rows} rows {window}"
    if isinstance(body, PerfEstimate):
        sure = "" if body.valid else " (not valid)"
        return f"accuracy by {body.method}{body.span} is about {body.estimate} %, {body.low} to {body.high} %{sure}"
    if isinstance(body, MaskedKey):
        return f"a one-time key: this site would take part in a sum over its rows of {_days(record)}, with nine others at least"
    if isinstance(body, MaskedSum):
        return (
            f"this site's share of a sum over its rows of {_days(record)}: {len(body.values)} numbers with noise, masked, which "
            f"mean nothing without the shares of all {body.sites - 1} other sites"
        )
    return _ops(body)


def _days(record: EgressRecord) -> str:
    return f"{record.start:%Y-%m-%d %H:%M} to {record.end:%Y-%m-%d %H:%M}"


def payload(record: EgressRecord) -> str:
    """The exact bytes that left, inside the signature."""
    return record.canonical().decode()


def _ops(body: Ops) -> str:
    problems = f", problems: {', '.join(body.problems)}" if body.problems else ""
    return f"disk {body.disk_free_percent} % and memory {body.memory_free_percent} % free{problems}"

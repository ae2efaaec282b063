"""Gates: small conditions over what a ring has shown, joined with `&` and `|`.

A gate answers with a GateFinding: whether it holds, and why, for an operator. Advance gates are joined with `&` (all must
hold), abort gates with `|` (one is enough). The statistics are
`model_formats.statistics`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from model_formats.statistics.e_values import log_e_value_below
from model_formats.statistics.intervals import Z999, wilson_interval
from sync.core.types import Reason

__all__ = [
    "CLASS_BOUND",
    "HARD",
    "AccuracyBelowChampion",
    "AccuracyBelowClaim",
    "Disagreement",
    "FailedShare",
    "GateFinding",
    "Gate",
    "HardReasons",
    "MaxMissing",
    "MinCommitted",
    "Tally",
    "WilsonLower",
]

ALPHA = 0.01

HARD = frozenset(
    {
        Reason.PUBLISHER_UNTRUSTED,
        Reason.PACKAGE_TAMPERED,
        Reason.PACKAGE_INVALID,
        Reason.LOAD_FAILED,
        Reason.GOLDEN_MISMATCH,
        Reason.OUTPUT_INVALID,
        Reason.MEMORY_EXCEEDED,
        Reason.SHADOW_DISAGREEMENT,
        Reason.ACCURACY_BELOW_CLAIM,
        Reason.ERROR_RATE,
        Reason.CRASHED_IN_PROBATION,
    }
)
"""Reasons that speak against the version, not against one machine or link."""
CLASS_BOUND = frozenset({Reason.GOLDEN_MISMATCH, Reason.LOAD_FAILED})
"""Hard ones that may be the fault of one class of CPU: no variant of the package is right there (`rollout.tally`)."""


@dataclass(frozen=True, slots=True)
class Tally:
    """One or more rings, counted. `ended` = committed + failed; rejected and unfit devices, superseded updates are in neither."""

    members: int = 0
    committed: int = 0
    failed: int = 0
    rejected: int = 0
    unfit: int = 0
    """No variant is right on their class of CPU, while another class runs the version or still tries it."""
    active: int = 0
    missing: int = 0
    hard: tuple[tuple[str, Reason], ...] = ()
    """Spoke and reason, for each hard one."""
    shadow_rows: int = 0
    shadow_disagreements: int = 0
    labelled: int = 0
    labelled_correct: int = 0
    champion_labelled: int = 0
    champion_labelled_correct: int = 0
    claim: float | None = None
    """What the package claims, by the hub's own copy of its evidence."""
    expected: float | None = None
    """What it can be held to at the sites of the labelled rows (`expected_accuracy`), weighed by these; the claim at most."""

    @property
    def ended(self) -> int:
        """Spokes with an outcome."""
        return self.committed + self.failed


@dataclass(frozen=True, slots=True)
class GateFinding:
    """A gate's answer. `code` is for machines; `why` is one line for people."""

    holds: bool
    why: str
    code: str = ""


def _no(why: str, code: str = "") -> GateFinding:
    return GateFinding(holds=False, why=why, code=code)


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition, called with a tally; `a & b` holds when both do, `a | b` when either does. The first telling reason stays."""

    judge: Callable[[Tally], GateFinding] = field(repr=False)

    def __call__(self, tally: Tally) -> GateFinding:
        """Judge."""
        return self.judge(tally)

    def __and__(self, other: "Gate") -> "Gate":
        def both(tally: Tally) -> GateFinding:
            first = self(tally)
            return other(tally) if first.holds else first

        return Gate(both)

    def __or__(self, other: "Gate") -> "Gate":
        def either(tally: Tally) -> GateFinding:
            first = self(tally)
            return first if first.holds else other(tally)

        return Gate(either)


# ---- advance --------------------------------------------------------------------------------------------------------------


def MinCommitted(n: int) -> Gate:  # noqa: N802 (a policy object, as in tenacity)
    """At least `n` spokes have committed."""
    return Gate(lambda t: GateFinding(t.committed >= n, f"{t.committed} of at least {n} committed", "min_committed"))


def WilsonLower(share: float) -> Gate:  # noqa: N802
    """The lower bound on committed / ended is at least `share`."""

    def judge(t: Tally) -> GateFinding:
        low = wilson_interval(t.committed, t.ended)[0]
        why = f"{t.committed} of {t.ended} that ended committed: at least {low:.2f} with 95 % confidence, {share:.2f} asked"
        return GateFinding(low >= share, why, "wilson_lower")

    return Gate(judge)


def MaxMissing(share: float) -> Gate:  # noqa: N802
    """At most `share` of the members are without an outcome: silent, or still at work."""

    def judge(t: Tally) -> GateFinding:
        allowed = math.floor(share * t.members + 1e-9)
        why = f"{t.active} still at work and {t.missing} missing of {t.members}, {allowed} allowed"
        return GateFinding(t.active + t.missing <= allowed, why, "max_missing")

    return Gate(judge)


# ---- abort ----------------------------------------------------------------------------------------------------------------


def HardReasons(n: int) -> Gate:  # noqa: N802
    """`n` or more reports with a hard reason."""

    def judge(t: Tally) -> GateFinding:
        if len(t.hard) < n:
            return _no(f"{len(t.hard)} hard reasons, {n} would abort")
        spoke, reason = t.hard[0]
        return GateFinding(holds=True, why=f"{spoke} reports {reason.value}", code=reason.value)

    return Gate(judge)


def FailedShare(share: float) -> Gate:  # noqa: N802
    """The failed share is above `share` with 95 % confidence, even if all that are still at work succeed.

    (Failures are quicker than successes, which must soak: counting only the ended ones would condemn every large ring.)
    """

    def judge(t: Tally) -> GateFinding:
        reached = t.ended + t.active
        low = wilson_interval(t.failed, reached)[0]
        why = f"{t.failed} of {reached} failed: at least {low:.2f} with 95 % confidence, {share:.2f} allowed"
        return GateFinding(t.failed > 0 and low > share, why, "failed_share")

    return Gate(judge)


def AccuracyBelowClaim(slack: float, alpha: float = ALPHA) -> Gate:  # noqa: N802
    """Labelled rows contradict what is expected of the package by more than `slack`, whatever the spokes concluded.

    The rule looks again with every report, so the test is one that may be looked at as often as one likes: it errs at most with
    probability `alpha` over the whole rollout (`log_e_value_below`).
    """

    def judge(t: Tally) -> GateFinding:
        if t.claim is None or t.expected is None or not t.labelled:
            return _no("no labelled rows, or no claim")
        odds = log_e_value_below(t.labelled, t.labelled_correct, max(0.0, t.expected - slack)) / math.log(10)
        there = f", {t.expected:.3f} expected there" if t.expected < t.claim else ""
        rows = f"{t.labelled_correct} of {t.labelled} labelled rows right, {t.claim:.3f} claimed{there}"
        why = f"{rows} (evidence 10^{odds:.1f} to 1)"
        return GateFinding(odds > -math.log10(alpha), why, Reason.ACCURACY_BELOW_CLAIM.value)

    return Gate(judge)


def AccuracyBelowChampion(slack: float) -> Gate:  # noqa: N802
    """The candidate is worse than the champion on labelled rows by more than `slack` (normal test of the difference, 99.9 %)."""

    def judge(t: Tally) -> GateFinding:
        if min(t.labelled, t.champion_labelled) < 20:
            return _no("fewer than 20 labelled rows on a side")
        ours, theirs = t.labelled_correct / t.labelled, t.champion_labelled_correct / t.champion_labelled
        spread = math.sqrt(ours * (1 - ours) / t.labelled + theirs * (1 - theirs) / t.champion_labelled) or 1e-9
        worse = (theirs - ours - slack) / spread > Z999
        return GateFinding(worse, f"{ours:.3f} on labelled rows, the champion {theirs:.3f}", "accuracy_below_champion")

    return Gate(judge)


def Disagreement(share: float, min_rows: int = 20) -> Gate:  # noqa: N802
    """Candidate and champion differ on more than `share` of the mirrored rows."""

    def judge(t: Tally) -> GateFinding:
        if t.shadow_rows < min_rows:
            return _no(f"{t.shadow_rows} mirrored rows, {min_rows} needed")
        found = t.shadow_disagreements / t.shadow_rows
        return GateFinding(
            found > share, f"differs on {found:.2f} of {t.shadow_rows} mirrored rows", Reason.SHADOW_DISAGREEMENT.value
        )

    return Gate(judge)

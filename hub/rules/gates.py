"""Gates: small conditions over what a ring has shown, joined with `&` and `|`.

A gate answers with a GateFinding: whether it holds, and why, for an operator. Advance gates are joined with `&` (all must
hold), abort gates with `|` (one is enough). Statistics: Wilson score bounds (Wilson 1927) and exact binomial tails, one-sided.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

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
    "binomial_tail",
    "contradiction",
    "wilson",
]

Z95 = 1.6448536269514722
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
        low = wilson(t.committed, t.ended)[0]
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
        low = wilson(t.failed, reached)[0]
        why = f"{t.failed} of {reached} failed: at least {low:.2f} with 95 % confidence, {share:.2f} allowed"
        return GateFinding(t.failed > 0 and low > share, why, "failed_share")

    return Gate(judge)


def AccuracyBelowClaim(slack: float, alpha: float = ALPHA) -> Gate:  # noqa: N802
    """Labelled rows contradict what is expected of the package by more than `slack`, whatever the spokes concluded.

    The rule looks again with every report, so the test is one that may be looked at as often as one likes: it errs at most with
    probability `alpha` over the whole rollout (`contradiction`).
    """

    def judge(t: Tally) -> GateFinding:
        if t.claim is None or t.expected is None or not t.labelled:
            return _no("no labelled rows, or no claim")
        odds = contradiction(t.labelled_correct, t.labelled, max(0.0, t.expected - slack))
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
        worse = (theirs - ours - slack) / spread > 3.090232306167813
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


# ---- statistics -----------------------------------------------------------------------------------------------------------


def wilson(good: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score bounds of a share, one-sided at 95 % each by default. Nothing seen: (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = good / n, z * z
    middle = share + z2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def contradiction(correct: int, n: int, share: float) -> float:
    """Evidence against "each row is right with probability `share` or more", as log10 of an e-value; valid at any time.

    The likelihood ratio against a uniform mixture of all lower shares (Robbins 1970): under the hypothesis it is a
    supermartingale that starts at 1, so by Ville's inequality it ever exceeds 1/alpha with probability at most alpha,
    however often one looks.
    """
    if n == 0 or share <= 0:
        return 0.0
    if share >= 1:
        return 0.0 if correct == n else math.inf
    wrong = n - correct
    below = binomial_tail(wrong, n + 1, 1 - share)
    beta = math.lgamma(correct + 1) + math.lgamma(wrong + 1) - math.lgamma(n + 2)
    odds = math.log(below) + beta - (correct + 1) * math.log(share) - wrong * math.log1p(-share)
    return odds / math.log(10)


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), exact, summed in logarithms."""
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    logs = [_log_pmf(i, n, p) for i in range(k + 1)]
    top = max(logs)
    return min(1.0, math.exp(top) * math.fsum(math.exp(value - top) for value in logs))


def _log_pmf(k: int, n: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose + k * math.log(p) + (n - k) * math.log1p(-p)

"""Decides from counts whether a new version passes shadow and probation at this site. Pure; no clock, no I/O.

Labels arrive one by one and are tested each time, so a plain test would raise a false alarm sooner or later. While the soak
lasts, a fault is called only by an e-value (a mixture likelihood ratio; Ville's inequality: under a true claim it ever reaches
1/alpha with probability at most alpha, however often one looks). At the end one exact one-sided binomial test decides.
"""

from dataclasses import dataclass

from model_formats.statistics.distributions import binomial_at_most
from model_formats.statistics.e_values import e_value_below
from model_formats.statistics.expected_accuracy import expected_accuracy
from sync.core.types import Reason
from sync.protocol.messages import ProbationTerms, ShadowTerms

__all__ = ["ProbationCounts", "ShadowCounts", "Verdict", "judge_probation", "judge_shadow"]

EARLY_ALPHA = 0.01
"""Chance that a version as good as it claims is called bad during the soak."""
FINAL_ALPHA = 0.05
"""Level of the test at the end."""
MIN_ROWS = 20
"""Mirrored rows, or requests, from which on a bad share is called before the end."""


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """Counts of a candidate beside the champion."""

    rows: int = 0
    disagreements: int = 0
    errors: int = 0
    latency_ratio: float | None = None
    waited_s: float = 0.0
    compared: bool = True
    """False where there is no champion to compare with."""


@dataclass(frozen=True, slots=True)
class ProbationCounts:
    """Counts of a new champion."""

    requests: int = 0
    errors: int = 0
    labelled: int = 0
    correct: int = 0
    champion_labelled: int = 0
    champion_correct: int = 0
    claim: float | None = None
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Passed, a fault with its reason, or (neither) wait."""

    passed: bool = False
    reason: Reason = Reason.NONE

    @property
    def wait(self) -> bool:
        """Whether to look again later."""
        return not self.passed and self.reason is Reason.NONE


_WAIT = Verdict()
_PASSED = Verdict(passed=True)


def judge_shadow(terms: ShadowTerms, seen: ShadowCounts) -> Verdict:
    """Judge a candidate that is loaded and gave the golden outputs."""
    if seen.latency_ratio is not None and seen.latency_ratio > terms.max_latency_ratio:
        return Verdict(reason=Reason.LATENCY_EXCEEDED)
    if seen.errors:
        return Verdict(reason=Reason.OUTPUT_INVALID)
    ended = not seen.compared or seen.rows >= terms.min_rows or seen.waited_s >= terms.max_wait_s
    share = seen.disagreements / seen.rows if seen.rows else 0.0
    if share > terms.max_disagreement and (ended or _surely_above(seen.disagreements, seen.rows, terms.max_disagreement)):
        return Verdict(reason=Reason.SHADOW_DISAGREEMENT)
    return _PASSED if ended else _WAIT


def judge_probation(terms: ProbationTerms, seen: ProbationCounts) -> Verdict:
    """Judge a new champion: errors, then accuracy on labelled rows against the claim (or what the site allows), then the soak."""
    expected = expected_accuracy(seen.claim, seen.champion_correct, seen.champion_labelled)
    floor = None if expected is None else max(0.0, expected - terms.accuracy_slack)
    ended = _probation_ended(terms, seen)
    if seen.errors > terms.max_error_rate * seen.requests and (
        ended or _surely_above(seen.errors, seen.requests, terms.max_error_rate)
    ):
        return Verdict(reason=Reason.ERROR_RATE)
    if floor is not None and seen.labelled and _below(seen.labelled, seen.correct, floor, ended=ended):
        return Verdict(reason=Reason.ACCURACY_BELOW_CLAIM)
    return _PASSED if ended else _WAIT


def _below(n: int, k: int, floor: float, *, ended: bool) -> bool:
    if e_value_below(n, k, floor) >= 1 / EARLY_ALPHA:
        return True
    return ended and binomial_at_most(k, n, floor) < FINAL_ALPHA


def _surely_above(bad: int, n: int, share: float) -> bool:
    return n >= MIN_ROWS and e_value_below(n, n - bad, 1 - share) >= 1 / EARLY_ALPHA


def _probation_ended(terms: ProbationTerms, seen: ProbationCounts) -> bool:
    enough = seen.requests >= terms.min_requests and seen.labelled >= terms.min_labelled
    return seen.waited_s >= terms.soak_s and (enough or seen.waited_s >= terms.max_wait_s)

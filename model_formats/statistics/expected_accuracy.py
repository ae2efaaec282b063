"""The accuracy that a site can be expected to see: the author's claim, or less where the version before proved less there."""

from model_formats.statistics.distributions import binomial_at_least

__all__ = ["MIN_COMPARED", "expected_accuracy"]


MIN_COMPARED = 30
"""Labelled champion rows from which on a site's own accuracy counts as what can be expected there."""


def expected_accuracy(claim: float | None, champion_correct: int, champion_labelled: int) -> float | None:
    """What a version can be held to at a site: its claim, or what the champion reaches there where it surely falls short of that.

    A scanner that has turned hurts both. Surely: an exact one-sided binomial test at 5 %, since a champion that is a little
    unlucky excuses nothing. Both ends judge by it: the spoke in probation, the hub over its rollout.
    """
    if claim is None or champion_labelled < MIN_COMPARED:
        return claim
    missed = champion_labelled - champion_correct
    short = binomial_at_least(missed, champion_labelled, 1 - claim) < 0.05
    return champion_correct / champion_labelled if short else claim

import random

import pytest

from model_formats.statistics.e_values import e_value_below
from spoke_agent.update.acceptance import ProbationCounts, ShadowCounts, judge_probation, judge_shadow
from sync.core.types import Reason
from sync.protocol.messages import ProbationTerms, ShadowTerms

TERMS = ProbationTerms(soak_s=60, accuracy_slack=0.02)


def test_a_version_as_good_as_it_claims_is_seldom_called_bad_however_often_one_looks():
    rng, false = random.Random(1), 0
    for _ in range(300):
        n = k = 0
        while n < 300:
            n, k = n + 1, k + (rng.random() < 0.95)
            if e_value_below(n, k, 0.95) >= 100:
                false += 1
                break
    assert false <= 6


@pytest.mark.parametrize(("accuracy", "within"), [(0.5, 40), (0.8, 200)])
def test_a_worse_version_is_found_in_the_soak(accuracy, within):
    rng, n, k = random.Random(2), 0, 0
    while judge_probation(TERMS, ProbationCounts(labelled=n, correct=k, claim=0.97, waited_s=1)).wait:
        n, k = n + 1, k + (rng.random() < accuracy)
        assert n <= within
    verdict = judge_probation(TERMS, ProbationCounts(labelled=n, correct=k, claim=0.97, waited_s=1))
    assert verdict.reason is Reason.ACCURACY_BELOW_CLAIM


def test_the_end_of_the_soak_decides_by_the_exact_test():
    middling = ProbationCounts(labelled=40, correct=35, claim=0.98, waited_s=1)
    assert judge_probation(TERMS, middling).wait
    ended = ProbationCounts(labelled=40, correct=35, claim=0.98, waited_s=60)
    assert judge_probation(TERMS, ended).reason is Reason.ACCURACY_BELOW_CLAIM


def test_a_site_where_every_version_is_bad_does_not_blame_the_new_one():
    seen = ProbationCounts(labelled=60, correct=30, claim=0.98, champion_labelled=200, champion_correct=100, waited_s=60)
    assert judge_probation(TERMS, seen).passed


def test_no_labels_and_no_claim_leave_it_to_errors_and_time():
    assert judge_probation(TERMS, ProbationCounts(waited_s=60)).passed
    assert judge_probation(TERMS, ProbationCounts(requests=50, errors=25, waited_s=1)).reason is Reason.ERROR_RATE
    assert judge_probation(TERMS, ProbationCounts(requests=5, errors=1, waited_s=1)).wait


def test_a_slow_or_differing_candidate_is_stopped_in_shadow():
    terms = ShadowTerms(min_rows=100, max_disagreement=0.1)
    assert judge_shadow(terms, ShadowCounts(latency_ratio=3.1)).reason is Reason.LATENCY_EXCEEDED
    assert judge_shadow(terms, ShadowCounts(rows=40, disagreements=30)).reason is Reason.SHADOW_DISAGREEMENT
    assert judge_shadow(terms, ShadowCounts(rows=40, disagreements=5)).wait
    assert judge_shadow(terms, ShadowCounts(rows=100, disagreements=10)).passed
    assert judge_shadow(terms, ShadowCounts(rows=1, errors=1)).reason is Reason.OUTPUT_INVALID
    assert judge_shadow(terms, ShadowCounts(compared=False)).passed

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.rules.gates import Gate, GateFinding, MinCommitted, Tally, WilsonLower, binomial_tail, contradiction, wilson

YES, NO = Gate(lambda _: GateFinding(True, "yes")), Gate(lambda _: GateFinding(False, "no"))


def test_and_keeps_the_first_reason_against_or_the_first_reason_for():
    assert (YES & NO)(Tally()).why == "no"
    assert (NO | YES)(Tally()).why == "yes"
    assert (YES & YES)(Tally()).holds
    assert not (NO | NO)(Tally()).holds


def test_nothing_seen_never_advances():
    assert not (MinCommitted(1) & WilsonLower(0.01))(Tally(members=5)).holds


@pytest.mark.parametrize(("good", "n", "low"), [(1, 1, 0.270), (10, 10, 0.787), (45, 46, 0.905)])
def test_wilson_lower_bounds_in_the_docs(good, n, low):
    assert wilson(good, n)[0] == pytest.approx(low, abs=0.005)


@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_hold_the_share(pair):
    good, n = pair
    low, high = wilson(good, n)
    assert 0 <= low <= high <= 1
    assert n == 0 or low <= good / n + 1e-9 <= high + 2e-9


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.data())
def test_binomial_tail_is_the_plain_sum(n, p, data):
    k = data.draw(st.integers(0, n))
    plain = math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_tail(k, n, p) == pytest.approx(min(1.0, plain), rel=1e-6, abs=1e-12)


def test_looking_after_every_row_rarely_condemns_an_honest_claim():
    rows = np.random.default_rng(1).random((400, 300)) < 0.94
    correct = rows.cumsum(axis=1)
    looks = [20, 50, 100, 150, 200, 250, 300]
    condemned = sum(any(contradiction(int(c[n - 1]), n, 0.94) > 2 for n in looks) for c in correct)
    assert condemned <= 4


@pytest.mark.parametrize(("correct", "n", "claim", "condemned"), [
    (18, 24, 0.94, False), (28, 40, 0.94, True), (96, 120, 0.94, True), (110, 120, 0.94, False), (1, 2, 0.94, False),
    (5, 5, 1.0, False), (4, 5, 1.0, True),
])  # fmt: skip
def test_evidence_grows_with_rows_and_with_the_gap(correct, n, claim, condemned):
    assert (contradiction(correct, n, claim) > 2) is condemned

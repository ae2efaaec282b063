import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_formats.statistics.distributions import binomial_at_least, binomial_at_most
from model_formats.statistics.e_values import e_value_below, log_e_value_below
from model_formats.statistics.intervals import Z95, Z999, wilson_interval

scipy_stats = pytest.importorskip("scipy.stats")  # comes with the training extra; a spoke has none
integrate = pytest.importorskip("scipy.integrate")

counts = st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_quantiles_are_the_normal_distributions():
    assert pytest.approx(scipy_stats.norm.ppf(0.95), rel=1e-12) == Z95
    assert pytest.approx(scipy_stats.norm.ppf(0.999), rel=1e-12) == Z999


@pytest.mark.parametrize(("good", "n", "low"), [(1, 1, 0.270), (10, 10, 0.787), (45, 46, 0.905)])
def test_wilson_lower_bounds_in_the_docs(good, n, low):
    assert wilson_interval(good, n)[0] == pytest.approx(low, abs=0.005)


@given(counts)
def test_wilson_bounds_hold_the_share(pair):
    good, n = pair
    low, high = wilson_interval(good, n)
    assert 0 <= low <= high <= 1
    assert n == 0 or low <= good / n + 1e-9 <= high + 2e-9


@given(counts.filter(lambda pair: pair[1] > 0))
def test_wilson_interval_is_scipys(pair):
    good, n = pair
    theirs = scipy_stats.binomtest(good, n).proportion_ci(confidence_level=0.9, method="wilson")
    assert wilson_interval(good, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.data())
def test_the_lower_tail_is_the_plain_sum(n, p, data):
    k = data.draw(st.integers(0, n))
    plain = math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_at_most(k, n, p) == pytest.approx(min(1.0, plain), rel=1e-6, abs=1e-12)


@given(st.integers(1, 400), st.floats(0.01, 0.99), st.data())
def test_both_tails_are_scipys(n, p, data):
    k = data.draw(st.integers(0, n))
    assert binomial_at_most(k, n, p) == pytest.approx(scipy_stats.binom.cdf(k, n, p), rel=1e-9, abs=1e-12)
    assert binomial_at_least(k, n, p) == pytest.approx(scipy_stats.binom.sf(k - 1, n, p), rel=1e-9, abs=1e-12)


@given(st.integers(1, 100), st.floats(0.3, 0.99), st.data())
def test_the_e_value_is_the_mixture_of_likelihood_ratios_that_it_says_it_is(n, p, data):
    k = data.draw(st.integers(0, n))

    def ratio(q: float) -> float:
        return math.exp(k * math.log(q / p) + (n - k) * (math.log1p(-q) - math.log1p(-p)))

    mixed = integrate.quad(ratio, 0, p, points=[min(k / n, p)], limit=200, epsabs=0)[0] / p
    assert e_value_below(n, k, p) == pytest.approx(mixed, rel=1e-6)


def test_the_logarithm_goes_on_where_the_value_is_too_large_for_a_float():
    assert log_e_value_below(5000, 0, 0.99) > 10_000
    assert math.isfinite(e_value_below(5000, 0, 0.99))
    assert log_e_value_below(5, 4, 1.0) == math.inf == e_value_below(5, 4, 1.0)
    assert e_value_below(5, 5, 1.0) == e_value_below(0, 0, 0.9) == e_value_below(5, 0, 0.0) == 1


def test_looking_after_every_row_rarely_condemns_an_honest_claim():
    rows = np.random.default_rng(1).random((400, 300)) < 0.94
    correct = rows.cumsum(axis=1)
    looks = [20, 50, 100, 150, 200, 250, 300]
    condemned = sum(any(e_value_below(n, int(c[n - 1]), 0.94) > 100 for n in looks) for c in correct)
    assert condemned <= 4

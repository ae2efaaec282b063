import pytest

from model_formats.statistics.distributions import binomial_at_least, chi2_tail, f_tail, kolmogorov_tail

scipy_stats = pytest.importorskip("scipy.stats")  # comes with the training extra; a spoke has none


@pytest.mark.parametrize(("value", "freedom"), [(0.01, 1), (3.0, 1), (12.3, 9), (80.0, 31), (500.0, 9), (0.5, 200)])
def test_chi_squared(value: float, freedom: int):
    assert chi2_tail(value, freedom) == pytest.approx(scipy_stats.chi2.sf(value, freedom), rel=1e-8, abs=1e-300)


@pytest.mark.parametrize(("value", "d1", "d2"), [(0.1, 3, 20), (1.3, 32, 800), (3.1, 10, 50), (8.0, 32, 4968)])
def test_fishers_f(value: float, d1: int, d2: int):
    assert f_tail(value, d1, d2) == pytest.approx(scipy_stats.f.sf(value, d1, d2), rel=1e-7)


@pytest.mark.parametrize(("k", "n", "p"), [(0, 10, 0.5), (9, 10, 0.5), (5, 20, 0.1), (300, 4000, 0.05), (11, 10, 0.5)])
def test_binomial(k: int, n: int, p: float):
    assert binomial_at_least(k, n, p) == pytest.approx(scipy_stats.binom.sf(k - 1, n, p), rel=1e-8)


def test_kolmogorov_is_close_to_exact_and_never_far_below():
    exact = scipy_stats.ks_2samp
    import numpy as np

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.standard_normal(200), rng.standard_normal(1000)
        found = exact(a, b, method="asymp")
        assert kolmogorov_tail(float(found.statistic), 200, 1000) == pytest.approx(found.pvalue, abs=0.03)

"""E-values: evidence against a claim that may be looked at after every row, at no cost in false alarms."""

import math

from model_formats.statistics.distributions import binomial_at_least

__all__ = ["e_value_below", "log_e_value_below"]


def e_value_below(n: int, k: int, p: float) -> float:
    """Evidence against 'the success probability is at least p' from k successes in n; see `log_e_value_below`."""
    log_e = log_e_value_below(n, k, p)
    return math.exp(log_e if math.isinf(log_e) else min(log_e, 700.0))


def log_e_value_below(n: int, k: int, p: float) -> float:
    """The same as a natural logarithm: the likelihood ratio of k successes in n, mixed over U(0, p), against p itself.

    Under the hypothesis it is a supermartingale that starts at 1 (Robbins 1970), so by Ville's inequality it ever exceeds
    1/alpha with probability at most alpha, however often one looks. The integral of q^k (1-q)^(n-k) over (0, p) is a binomial
    tail: P(Bin(n+1, p) > k) / ((n+1) C(n,k)).
    """
    if n == 0 or p <= 0:
        return 0.0
    if p >= 1:
        return math.inf if k < n else 0.0
    above = binomial_at_least(k + 1, n + 1, p)
    if above <= 0:
        return -math.inf
    return math.log(above) - math.log(n + 1) - _log_pmf(n, k, p) - math.log(p)


def _log_pmf(n: int, k: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose + k * math.log(p) + (n - k) * math.log1p(-p)

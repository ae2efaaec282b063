"""What is sent is uniformly random until the last share is there; then the sum is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.core.types import SpokeId
from sync.federated.masks import fresh_secret, masked, public_of, total

SITES = [SpokeId(f"site-{i:02}") for i in range(10)]
COHORT, OTHER = "sha256:" + "01" * 32, "sha256:" + "02" * 32
SECRETS = {site: fresh_secret() for site in SITES}
PUBLIC = {site: public_of(secret) for site, secret in SECRETS.items()}


def share(site, values, cohort=COHORT, peers=None):
    return masked(values, site, SECRETS[site], {s: k for s, k in (peers or PUBLIC).items() if s != site}, cohort)


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), min_size=10, max_size=10))
def test_the_sum_over_all_shares_is_exact(rows):
    shares = [share(site, values) for site, values in zip(SITES, rows, strict=True)]
    assert total(shares) == tuple(np.sum(rows, axis=0).tolist())


def test_every_subset_of_nine_shares_says_nothing():
    zeros = [0] * 4096
    shares = {site: share(site, zeros) for site in SITES}
    for absent in SITES:
        seen = np.array(total(s for site, s in shares.items() if site != absent), np.int64)
        assert _looks_uniform(seen & (2**48 - 1))


def test_one_share_is_uniformly_random_whatever_it_hides():
    for value in (0, 1, 5000, 2**40):
        assert _looks_uniform(np.array(share(SITES[0], [value] * 4096), np.int64))


def test_shares_for_different_cohorts_do_not_cancel_even_in_part():
    split = [share(site, [7] * 4096, COHORT if i < 5 else OTHER) for i, site in enumerate(SITES)]
    assert _looks_uniform(np.array(total(split), np.int64) & (2**48 - 1))


def test_two_sums_of_the_same_rows_have_nothing_in_common():
    first = share(SITES[0], [5] * 64)
    again = masked([5] * 64, SITES[0], fresh_secret(), {s: k for s, k in PUBLIC.items() if s != SITES[0]}, COHORT)
    assert not set(first) & set(again)


def test_a_key_of_low_order_is_refused():
    with pytest.raises(ValueError, match="shared key"):
        share(SITES[0], [1], peers=PUBLIC | {SITES[1]: bytes(32)})


def _looks_uniform(values: np.ndarray) -> bool:
    """Chi-squared over all six bytes of each value, at five standard deviations: false for any fixed pattern."""
    for byte in range(6):
        counts = np.bincount((values >> (8 * byte)) & 255, minlength=256)
        expected = len(values) / 256
        if ((counts - expected) ** 2 / expected).sum() > 255 + 5 * np.sqrt(2 * 255):
            return False
    return True

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spoke_agent.outbox.floors import merge_small, noisy, rounded
from sync.protocol.egress import MERGED, FeatureCounts

counts = st.lists(st.integers(0, 60), min_size=1, max_size=45)


@given(counts)
def test_merging_keeps_the_total_and_leaves_no_small_cell(cells: list[int]):
    merged = merge_small(cells, 10)
    if merged is None:
        assert 0 < sum(cells) < 10
        return
    assert len(merged) == len(cells)
    assert merged[0] != MERGED
    assert sum(c for c in merged if c != MERGED) == sum(cells)
    assert all(c in (0, MERGED) or c >= 10 for c in merged)
    FeatureCounts(feature=0, counts=merged)


@given(counts)
def test_each_merged_cell_is_the_exact_sum_of_the_cells_it_stands_for(cells: list[int]):
    merged = merge_small(cells, 10)
    if merged is not None:
        starts = [i for i, c in enumerate(merged) if c != MERGED]
        sums = np.add.reduceat(np.array(cells), starts)
        assert [merged[i] for i in starts] == sums.tolist()


@given(counts, st.integers(1, 20))
def test_rounding_never_goes_below_the_floor(cells: list[int], step: int):
    merged = merge_small(cells, 10)
    if merged is not None:
        FeatureCounts(feature=0, counts=rounded(merged, step, 10))


def test_noise_has_the_spread_of_its_epsilon_and_passes_the_floor():
    drawn = np.array(noisy([1000] * 3000, 0.5, 10)) - 1000
    assert abs(drawn.mean()) < 0.4
    assert 2.2 < drawn.std() < 3.4  # the discrete Laplace of epsilon .5 has 2.8
    FeatureCounts(feature=0, counts=noisy([0, 4, 12, 500], 0.1, 10))


def test_which_small_cell_it_was_cannot_be_told_by_subtraction():
    one = merge_small([100, 3, 50, 200], 10)
    other = merge_small([100, 0, 53, 200], 10)
    assert one is not None
    assert other is not None
    assert one == (100, 53, MERGED, 200)
    assert sum(one) + 1 == sum(other)

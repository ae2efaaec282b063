"""Sums that sites add up and the hub reads: exact, bounded, and of columns that the package names."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_formats.documents.feature_contract import Field_, TensorContract
from model_formats.statistics.federated_sums import SCALE, SumsInvalid, add_up, lay_out, read_totals
from tests.samples.tabular import CONTRACT, profile, scores, table

NUMERIC = (0, 1, 2, 3, 4, 5, 6, 7)


def _columns(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from model_formats.statistics.reference_profile import columns

    rng = np.random.default_rng(seed)
    x = table(rows, rng, "missing")
    labels = rng.integers(0, 3, rows).astype(float)
    labels[::7] = np.nan
    return columns(profile(), {"x": x}, {"y": scores(x, rng)}), labels


@pytest.mark.parametrize(("statistic", "features"), [("label_counts", ()), ("feature_counts", ()), ("feature_moments", NUMERIC)])
def test_the_sum_over_parts_is_the_whole(statistic, features):
    layout = lay_out(CONTRACT, profile(), statistic, features)
    rows, labels = _columns(500, 1)
    whole = add_up(layout, profile(), rows, labels)
    parts = [add_up(layout, profile(), rows[i : i + 100], labels[i : i + 100]) for i in range(0, 500, 100)]
    assert np.sum(parts, axis=0).tolist() == whole
    assert len(whole) == len(layout.bounds)


@given(st.integers(0, 10_000), st.sampled_from(["label_counts", "feature_counts", "feature_moments"]))
def test_one_row_changes_no_more_than_the_noise_is_sized_for(seed, statistic):
    layout = lay_out(CONTRACT, profile(), statistic, NUMERIC if statistic == "feature_moments" else ())
    rows, labels = _columns(20, seed)
    rows[0] += np.random.default_rng(seed).choice([0.0, 1e9, -1e9, np.inf, np.nan])
    change = np.abs(np.array(add_up(layout, profile(), rows, labels)) - add_up(layout, profile(), rows[1:], labels[1:]))
    assert (change <= layout.bounds).all()
    assert np.count_nonzero(change) <= layout.touches
    assert sum(c * s for c, s in zip(change, layout.shares(1.0), strict=True)) <= 1.0 + 1e-9


def test_mean_and_variance_are_those_of_the_clipped_rows():
    layout = lay_out(CONTRACT, profile(), "feature_moments", (0, 7))
    rows, labels = _columns(20_000, 3)
    first, last = read_totals(layout, add_up(layout, profile(), rows, labels), sites=10, epsilon=1.0, least=10)
    for told, part, column in ((first, layout.parts[0], rows[:, 0]), (last, layout.parts[1], rows[:, 7])):
        clipped = np.clip(column[~np.isnan(column)], part.low, part.high)
        span = part.high - part.low
        assert told.rows == len(clipped)
        assert told.mean == pytest.approx(clipped.mean(), abs=span / SCALE)
        assert told.variance == pytest.approx(clipped.var(), abs=3 * span**2 / SCALE)


def test_the_contracts_range_is_used_where_it_states_one():
    columns = tuple(Field_(name=f"c{i}", low=-9.0, high=9.0) if i == 0 else Field_(name=f"c{i}") for i in range(10))
    contract = CONTRACT.replace(inputs=(TensorContract(name="x", datatype="FP32", shape=(-1, 10), columns=columns),))
    stated, edges = lay_out(contract, profile(), "feature_moments", (0, 1)).parts
    assert (stated.low, stated.high) == (-9.0, 9.0)
    assert (edges.low, edges.high) == (profile().features[1].edges[0], profile().features[1].edges[-1])


def test_small_counts_and_moments_of_few_rows_are_not_shown():
    layout = lay_out(CONTRACT, profile(), "label_counts")
    (labels,) = read_totals(layout, [9, 10, -4], sites=10, epsilon=1.0, least=10)
    assert labels.cells == (None, 10, None)
    (moments,) = read_totals(lay_out(CONTRACT, profile(), "feature_moments", (0,)), [99, 5, 5], sites=10, epsilon=1.0, least=10)
    assert (moments.rows, moments.mean) == (None, None)


def test_the_noise_that_is_told_is_that_of_all_sites_together():
    layout = lay_out(CONTRACT, profile(), "label_counts")
    (labels,) = read_totals(layout, [100, 100, 100], sites=10, epsilon=1.0, least=10)
    q = math.exp(-1.0)
    assert labels.noise == pytest.approx(math.sqrt(10 * 2 * q / (1 - q) ** 2), abs=1e-3)


@pytest.mark.parametrize(
    ("statistic", "features", "contract"),
    [
        ("label_counts", (), CONTRACT.replace(task="regression")),
        ("label_counts", (0,), CONTRACT),
        ("feature_moments", (8,), CONTRACT),
        ("feature_counts", (3, 1), CONTRACT),
        ("feature_counts", (1, 1), CONTRACT),
        ("feature_counts", (99,), CONTRACT),
    ],
)
def test_what_the_rows_do_not_have_cannot_be_asked(statistic, features, contract):
    with pytest.raises(SumsInvalid):
        lay_out(contract, profile(), statistic, features)

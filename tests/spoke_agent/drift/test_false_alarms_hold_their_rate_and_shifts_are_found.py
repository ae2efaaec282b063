import numpy as np
import pytest

from model_formats.statistics.reference_profile import columns, count, rff
from spoke_agent.drift.verdict import DriftWindow, judge, judge_counts
from tests.samples.tabular import profile, scores, table


def window(rows: int, seed: int, drift: str = "none") -> DriftWindow:
    rng = np.random.default_rng(seed)
    x = table(rows, rng, drift)
    return judge(profile(), columns(profile(), {"x": x}, {"y": scores(x, rng)}))


@pytest.mark.parametrize("rows", [200, 2000])
def test_windows_like_the_reference_hardly_ever_alarm(rows: int):
    ps = [window(rows, 100 + seed).p for seed in range(60)]
    assert np.mean(np.array(ps) < 0.01) <= 0.05  # three of sixty at a rate of one in a hundred: p about .02
    assert np.mean(np.array(ps) < 0.3) <= 0.5


@pytest.mark.parametrize(
    ("drift", "feature", "direction"),
    [("shift", 0, "up"), ("scale", 0, "spread"), ("mix", 8, "mix"), ("missing", 1, "missing")],
)
def test_a_shift_of_one_column_is_found_and_named(drift: str, feature: int, direction: str):
    found = window(2000, 1, drift)
    assert found.p < 1e-4
    surest = min(found.columns, key=lambda c: c.p)
    assert (surest.feature, surest.direction) == (feature, direction)


def test_a_relation_that_flips_is_found_by_the_joint_test_alone():
    found = window(1000, 2, "relation")
    inputs = [c.p for c in found.columns if profile().features[c.feature].source == "input"]
    assert found.joint_p < 1e-6
    assert found.p < 1e-6
    assert min(inputs) > 1e-3


def test_counting_in_parts_gives_the_same_verdict_as_counting_at_once():
    rng = np.random.default_rng(3)
    x = table(900, rng, "small shift")
    whole = columns(profile(), {"x": x}, {"y": scores(x, rng)})
    counts = [sum(c) for c in zip(*(count(profile(), part) for part in np.array_split(whole, 7)), strict=True)]
    joint = sum(rff(profile(), part).sum(axis=0) for part in np.array_split(whole, 7))
    at_once, in_parts = judge(profile(), whole), judge_counts(profile(), counts, joint, len(whole))
    assert all(np.array_equal(a, b) for a, b in zip(at_once.counts, in_parts.counts, strict=True))
    assert in_parts.p == pytest.approx(at_once.p, rel=1e-9)


@pytest.mark.parametrize("bad", ["constant", "infinite", "all missing", "wild"])
def test_odd_windows_are_judged_and_do_not_crash(bad: str):
    x = table(300, np.random.default_rng(4))
    x[:, 0] = {"constant": 7, "infinite": np.inf, "all missing": np.nan, "wild": 3e38}[bad]
    found = judge(profile(), columns(profile(), {"x": x}, {"y": scores(x, np.random.default_rng(5))}))
    assert 0 <= found.p < 1e-6


def test_a_window_without_rows_says_nothing():
    assert judge(profile(), np.empty((0, len(profile().features)))).p == 1.0

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.train.corruptions import turn
from hub.train.datasets import digits
from model_formats.package.adapter import Anchors, Head
from spoke_agent.adapters.errors import TooFewLabels
from spoke_agent.adapters.gate import AdapterGateTerms, Fold, judge, score
from spoke_agent.adapters.head_fit import FitRows, fit_head, lbfgs, losses
from spoke_agent.tuning.recipe import clean, tune_head
from tests.samples.adaptable import features, hub_head


def rows(site: str, degrees: float = 0.0, count: int | None = None) -> FitRows:
    share = digits().sites[site]
    images = share.inputs["image"]
    turned = turn(images, degrees) if degrees else images
    return FitRows(features(turned), share.labels).take(np.arange(len(share.labels))[:count])


def anchors() -> Anchors:
    held = digits().held_out
    return Anchors(features(held.inputs["image"][:100]).astype(np.float16), held.labels[:100], hub_head())


def test_lbfgs_finds_the_minimum_of_a_quadratic():
    rng = np.random.default_rng(0)
    square = rng.standard_normal((6, 6))
    matrix, target = square @ square.T + np.eye(6), rng.standard_normal((6, 2))

    def bowl(x: np.ndarray) -> tuple[float, np.ndarray]:
        away = x - target
        return 0.5 * float((away * (matrix @ away)).sum()), matrix @ away

    assert np.allclose(lbfgs(bowl, np.zeros((6, 2)), steps=200, tolerance=1e-9), target, atol=1e-5)


def test_the_fit_reaches_the_minimum_that_a_library_finds():
    optimize = pytest.importorskip("scipy.optimize")
    site, hub = rows("frankfurt", 35, 200), hub_head()
    scale = float(np.sqrt((site.features.astype(np.float64) ** 2).mean()))
    start = np.vstack([hub.weight * scale, hub.bias]).astype(np.float64)

    def objective(flat: np.ndarray) -> float:
        whole = flat.reshape(start.shape)
        head = Head(whole[:-1] / scale, whole[-1])
        return float(losses(head, site).mean()) + 0.5 * 1e-2 * float(((whole - start) ** 2).sum())

    ours = fit_head(site, None, hub, 1e-2)
    here = np.vstack([ours.weight * scale, ours.bias]).ravel()
    slope = optimize.approx_fprime(here, objective, 1e-6)
    assert objective(here) < objective(start.ravel()) - 0.3
    assert np.abs(slope).max() < 2e-3  # a minimum, and the objective is convex


def test_a_turned_scanner_is_learned_and_the_hubs_digits_are_not_forgotten():
    tuned = tune_head(rows("frankfurt", 35, 200), anchors())
    test = rows("clinic", 35)
    held = digits().held_out
    clean_rows = FitRows(features(held.inputs["image"][100:]), held.labels[100:])
    assert tuned.verdict.passed
    assert score(tuned.head, test) > score(hub_head(), test) + 0.2
    assert score(tuned.head, clean_rows) > score(hub_head(), clean_rows) - 0.1


def test_without_anchors_the_hubs_digits_are_forgotten_more():
    site = rows("frankfurt", 35, 200)
    held = digits().held_out
    clean_rows = FitRows(features(held.inputs["image"][100:]), held.labels[100:])
    anchored = FitRows(features(held.inputs["image"][:100]), held.labels[:100])
    with_them = fit_head(site, anchored, hub_head(), 1e-3)
    without = fit_head(site, None, hub_head(), 1e-3)
    assert score(with_them, clean_rows) > score(without, clean_rows) + 0.03


@pytest.mark.parametrize("seed", range(8))
def test_shuffled_labels_are_never_accepted(seed: int):
    site = rows("frankfurt", 35 if seed % 2 else 0, 200)
    shuffled = FitRows(site.features, np.random.default_rng(seed).permutation(site.labels))
    assert not tune_head(shuffled, anchors()).verdict.passed


def test_a_head_that_forgets_the_hub_is_refused_even_when_it_wins_here():
    site = rows("frankfurt", 35, 200)
    tuned = tune_head(site, anchors(), terms=AdapterGateTerms(max_anchor_loss=-0.01))
    assert not tuned.verdict.passed
    assert tuned.verdict.after > tuned.verdict.before


def test_the_gate_counts_discordant_rows_exactly():
    head = Head(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    flipped = Head(np.eye(2, dtype=np.float32)[::-1].copy(), np.zeros(2, np.float32))
    held = FitRows(np.eye(2, dtype=np.float32)[[0] * 5 + [1]], np.array([0] * 5 + [0]))
    verdict = judge([Fold(head, held)], flipped, head, AdapterGateTerms())
    assert (verdict.wins, verdict.losses) == (5, 1)
    assert verdict.p == pytest.approx(7 / 64)  # P(X >= 5 of 6)
    assert not verdict.passed


def test_regression_heads_are_fitted_and_gated_too():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 12)).astype(np.float32)
    truth = rng.standard_normal((12, 1)).astype(np.float32)
    hub = Head(truth, np.zeros(1, np.float32))
    here = (x @ truth)[:, 0] * 1.5 + 2 + 0.1 * rng.standard_normal(300)
    known = Anchors(x[:60].astype(np.float16), (x[:60] @ truth)[:, 0].astype(np.float32), hub)
    tuned = tune_head(FitRows(x[100:], here[100:]), known, terms=AdapterGateTerms(max_anchor_loss=5))
    assert tuned.verdict.passed
    assert tuned.verdict.after > tuned.verdict.before


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda r: r.take(np.arange(20)), "20 usable"),
        (lambda r: FitRows(r.features, np.zeros(len(r), np.int64)), "one class"),
        (lambda r: FitRows(r.features, r.labels + 10), "0 usable"),
        (lambda r: FitRows(r.features * np.nan, r.labels), "0 usable"),
        (lambda r: FitRows(r.features[:1].repeat(len(r), axis=0), r.labels), "1 usable"),
    ],
)
def test_rows_that_teach_nothing_are_refused_with_what_was_left(spoil: object, told: str):
    with pytest.raises(TooFewLabels, match=told):
        tune_head(spoil(rows("frankfurt", 35, 200)), anchors())  # type: ignore[operator]


def test_some_bad_rows_among_good_ones_are_left_out():
    site = rows("frankfurt", 35, 200)
    spoiled = site.features.copy()
    spoiled[3] = np.inf
    twice = FitRows(np.concatenate([spoiled, site.features]), np.concatenate([site.labels, site.labels]))
    assert len(clean(twice, hub_head())) == 200


def test_a_constant_feature_does_no_harm():
    site = rows("frankfurt", 35, 200)
    site.features[:, :5] = 3.0
    assert np.isfinite(tune_head(site, anchors()).head.weight).all()


@settings(max_examples=8)
@given(st.integers(40, 90), st.integers(2, 10), st.integers(0, 1000))
def test_any_table_gives_a_finite_head_and_the_same_one_twice(count: int, classes: int, seed: int):
    rng = np.random.default_rng(seed)
    width = 7
    hub = Head(rng.standard_normal((width, classes)).astype(np.float32), np.zeros(classes, np.float32))
    site = FitRows(rng.standard_normal((count, width)).astype(np.float32), rng.integers(0, classes, count))
    site.labels[:2] = [0, 1]
    known = Anchors(rng.standard_normal((30, width)).astype(np.float16), rng.integers(0, classes, 30), hub)
    first, second = tune_head(site, known), tune_head(site, known)
    assert np.isfinite(first.head.weight).all()
    assert np.array_equal(first.head.weight, second.head.weight)


def test_losses_are_cross_entropy():
    head = Head(np.eye(3, dtype=np.float32), np.zeros(3, np.float32))
    found = losses(head, FitRows(np.array([[2.0, 0, 0]], np.float32), np.array([0])))
    assert found[0] == pytest.approx(np.log(np.exp(2) + 2) - 2)

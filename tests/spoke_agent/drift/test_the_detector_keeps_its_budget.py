from datetime import timedelta

import numpy as np
import pytest

from spoke_agent.drift.adwin import Adwin
from spoke_agent.drift.detector import Detector, budget_windows


def run_length(budget: int, seed: int, most: int) -> int:
    rng, detector = np.random.default_rng(seed), Detector(budget=budget)
    for n in range(1, most):
        detector = detector.after(float(rng.random()))
        if detector.level == "alarm":
            return n
    return most


def test_the_mean_time_between_false_alarms_is_at_least_the_budget():
    assert np.mean([run_length(50, seed, 2000) for seed in range(60)]) >= 50


def test_one_clear_window_alarms_at_once_under_a_budget_of_a_quarter():
    detector = Detector(budget=budget_windows(timedelta(days=91), timedelta(minutes=15)))
    assert detector.budget == 8736
    assert detector.after(1e-9).level == "alarm"


def test_a_run_of_doubtful_windows_alarms_in_the_end():
    detector, levels = Detector(budget=8736), []
    for _ in range(12):
        detector = detector.after(0.005)
        levels.append(detector.level)
    assert levels[0] == "quiet"
    assert "watch" in levels
    assert levels[-1] == "alarm"


def test_it_comes_to_rest_when_the_fault_is_mended():
    detector = Detector(budget=1000).after(1e-12)
    assert detector.level == "alarm"
    for _ in range(40):
        detector = detector.after(0.6)
    assert detector.level == "quiet"
    assert detector.windows == 0


def test_falling_confidence_is_noticed_early_and_steady_confidence_is_not():
    rng = np.random.default_rng(0)
    steady = Adwin().after(rng.beta(20, 2, 3000))
    assert not steady.fell
    fallen = steady.after(rng.beta(8, 3, 400))
    assert fallen.fell
    assert not fallen.after(rng.beta(20, 2, 1500)).fell


@pytest.mark.parametrize("values", [[], [float("nan")] * 100, [1.0] * 1000])
def test_confidences_that_say_nothing_change_nothing(values: list[float]):
    assert not Adwin().after(np.array(values)).fell

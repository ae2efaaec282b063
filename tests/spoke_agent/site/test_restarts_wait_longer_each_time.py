"""A process that falls again and again is started again later each time, up to a minute; one that ran long, at once."""

from spoke_agent.site.restart import RestartPolicy


def test_pauses_double_up_to_a_minute():
    policy = RestartPolicy()
    assert [policy.pause_s(1) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_long_run_starts_the_count_anew():
    policy = RestartPolicy()
    assert [policy.pause_s(ran_s) for ran_s in (1, 1, 61, 1)] == [0.5, 1, 0, 0.5]

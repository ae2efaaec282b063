"""A candidate sees mirrored rows; what differs is counted; nobody waits for it."""

import numpy as np
import pytest

from spoke_agent.server.models.shadow import disagreements
from tests.spoke_agent.server.sites import cnn
from tests.spoke_agent.server.test_requests import body


def shadow(running):
    return running.control.stats().models["digits"].shadow


def test_an_equal_candidate_never_disagrees(site, run, eventually):
    one = site.publish(1)
    site.slots(champion=one, candidate=site.publish(2, proto=cnn(1)))
    running = run(site)
    for i in range(1, 6):
        running.infer(body(i))
    eventually(lambda: shadow(running).rows == 15)
    assert shadow(running).disagreements == 0


def test_another_candidate_disagrees_and_is_not_counted_as_traffic(site, run, eventually):
    site.slots(champion=site.publish(1), candidate=site.publish(2, proto=cnn(77)))
    running = run(site)
    running.infer(body(50))
    eventually(lambda: shadow(running).rows == 50)
    assert shadow(running).disagreements > 10
    stats = running.control.stats().models["digits"]
    assert (stats.champion.requests, stats.candidate.requests) == (1, 0)
    assert 'spoke_shadow_rows_total{model="digits"} 50' in running.http.get("/metrics").text


def test_more_rows_than_the_buffer_holds_are_dropped_and_counted(site, run, eventually):
    site.slots(champion=site.publish(1), candidate=site.publish(2, proto=cnn(2, layers=4, channels=32)))
    running = run(site)
    assert running.infer(body(1100)).status_code == 200
    assert shadow(running).dropped == 1100
    assert running.infer(body(100)).status_code == 200
    eventually(lambda: shadow(running).rows == 100)


def test_adapted_answers_are_compared_head_against_head(site, run, eventually):
    one = site.publish(1)
    site.slots(champion=one, candidate=site.publish(2, proto=cnn(1)), adapter=site.adapter(one))
    running = run(site)
    assert np.argmax(running.infer(body()).json()["outputs"][0]["data"]) == 3
    eventually(lambda: shadow(running).rows == 1)
    assert shadow(running).disagreements == 0


def test_counts_end_with_the_candidate(site, run, eventually):
    one = site.publish(1)
    site.slots(champion=one, candidate=site.publish(2, proto=cnn(2)))
    running = run(site)
    running.infer(body(9))
    eventually(lambda: shadow(running).rows == 9)
    site.slots(champion=one)
    running.control.reconcile()
    running.infer(body(9))
    assert shadow(running).rows == 0


@pytest.mark.parametrize(
    ("task", "own", "other", "expected"),
    [
        ("classification", [[0, 1], [1, 0]], [[0, 9], [9, 0]], 0),
        ("classification", [[0, 1], [1, 0]], [[9, 0], [9, 0]], 1),
        ("classification", [[0, 1], [1, 0]], [[0, np.nan], [1, 0]], 1),
        ("regression", [[1.0], [2.0], [3.0]], [[1.0], [2.01], [9.0]], 1),
        ("regression", [[1.0], [2.0]], [[np.inf], [2.0]], 1),
        ("classification", [[0, 1]], [[0, 1, 2]], 1),
    ],
)
def test_what_counts_as_a_disagreement(task, own, other, expected):
    own, other = np.array(own, np.float32), np.array(other, np.float32)
    assert disagreements(task, ["y"], [own], ["y"], [other], len(own)) == expected


def test_another_output_name_disagrees_on_every_row():
    y = np.zeros((4, 2), np.float32)
    assert disagreements("classification", ["y"], [y], ["z"], [y], 4) == 4

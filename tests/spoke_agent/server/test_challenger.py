"""A candidate that answers its share of the callers, as the slots say."""

import pytest

from model_formats.documents.feature_contract import FeatureContract, TensorContract
from spoke_agent.site.slots import ChallengerSlot
from tests.spoke_agent.server.sites import K, cnn, digits_contract
from tests.spoke_agent.server.test_requests import body


def answered_by(running, **parameters):
    return running.infer(body(parameters=parameters)).json()["model_version"]


@pytest.fixture
def split(site, run):
    one, two = site.publish(1), site.publish(2, proto=cnn(2))
    site.slots(champion=one, candidate=two, challenger=ChallengerSlot(index=two.index, percent=30))
    return run(site)


def test_the_challenger_answers_about_its_share(split):
    found = [answered_by(split) for _ in range(200)]
    assert 30 <= found.count("2") <= 95
    stats = split.control.stats().models["digits"]
    assert (stats.champion.requests, stats.candidate.requests) == (found.count("1"), found.count("2"))
    assert 'role="challenger"' in split.http.get("/metrics").text


def test_a_sticky_caller_always_meets_the_same_version(split):
    first = [answered_by(split, sticky=f"till-{i}") for i in range(100)]
    assert first == [answered_by(split, sticky=f"till-{i}") for i in range(100)]
    assert 10 <= first.count("2") <= 50


def test_who_names_a_version_or_a_head_gets_it(split):
    assert {answered_by(split, adapter="none") for _ in range(30)} == {"1"}
    for number in ("1", "2"):
        answer = split.http.post(f"/v2/models/digits/versions/{number}/infer", json=body())
        assert answer.json()["model_version"] == number


def test_rows_of_the_champion_are_still_mirrored(split, eventually):
    found = [answered_by(split) for _ in range(20)]
    eventually(lambda: split.control.stats().models["digits"].shadow.rows == found.count("1"))


def test_a_share_for_another_version_is_not_inherited(site, run):
    one, two = site.publish(1), site.publish(2)
    site.slots(champion=one, candidate=two, challenger=ChallengerSlot(index=one.index, percent=100))
    assert answered_by(run(site)) == "1"


def test_a_challenger_that_callers_cannot_use_alike_answers_nobody(site, run):
    contract = digits_contract()
    image = TensorContract(name="image", datatype="FP32", shape=(-1, 1, 8, 8), low=0, high=16)
    outputs = (
        TensorContract(name="features", datatype="FP32", shape=(-1, 32)),
        TensorContract(name="logits", datatype="FP32", shape=(-1, K)),
    )
    other = FeatureContract(task="embedding", inputs=(image,), outputs=outputs)
    one, two = site.publish(1, contract=contract), site.publish(2, contract=other)
    site.slots(champion=one, candidate=two, challenger=ChallengerSlot(index=two.index, percent=100))
    running = run(site)
    assert running.control.reconcile().models["digits"].candidate.loaded
    assert answered_by(running) == "1"


def test_a_sticky_key_must_be_text(split):
    assert split.infer(body(parameters={"sticky": 7})).status_code == 400

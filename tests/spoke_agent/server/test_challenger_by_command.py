"""`spoke challenger`: a version of this site's choice answers a share, beside whatever the hub rolls out."""

import json

import pytest
from click.testing import CliRunner

from model_formats.documents.feature_contract import FeatureContract, TensorContract
from spoke_agent.cli import group
from spoke_agent.daemon.challenger import ChallengerUnknown, set_challenger, show, stop
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.slots import edit_slots, read_slots
from tests.spoke_agent.server.sites import K, cnn
from tests.spoke_agent.server.test_challenger import answered_by
from tests.spoke_agent.server.test_requests import body


def spoke(site, *words, status=0):
    result = CliRunner().invoke(group, ["--home", str(site.home), "--json", "challenger", *words])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout) if status == 0 else result


def give(site, *more, version="1", percent="50"):
    return spoke(site, "set", "--model", "digits", "--version", version, "--percent", percent, *more)


@pytest.fixture
def two(site):
    """Version 2 answers; version 1 is what a rollback goes to."""
    one, two = site.publish(1), site.publish(2, proto=cnn(2))
    site.slots(champion=two, last_good=one)
    return two


def test_the_version_before_answers_its_share_until_it_is_stopped(site, run, two):
    running = run(site)
    assert give(site)["serving"]
    found = [answered_by(running) for _ in range(100)]
    assert 25 <= found.count("1") <= 75
    (row,) = spoke(site, "show")
    assert (row["champion"]["requests"], row["challenger"]["requests"]) == (found.count("2"), found.count("1"))
    assert (row["version"], row["percent"], row["rests"]) == (1, 50, False)
    assert spoke(site, "stop", "--model", "digits")["stopped"]
    assert {answered_by(running) for _ in range(40)} == {"2"}
    assert spoke(site, "show") == []


def test_only_callers_with_a_key_take_part_when_it_is_sticky(site, run, two):
    running = run(site)
    give(site, "--sticky", percent="100")
    assert {answered_by(running) for _ in range(20)} == {"2"}
    assert answered_by(running, sticky="till-7") == "1"


def test_it_outlives_a_restart_and_its_blobs_are_kept(site, run, two):
    give(site, percent="100")
    slots = read_slots(site.home / "slots.json")
    assert slots.models["digits"].challenger.index in slots.pinned()
    assert answered_by(run(site)) == "1"


def test_it_rests_while_a_newer_version_is_in_probation_and_is_back_after_a_rollback(site, run, two):
    running, three = run(site), site.publish(3, proto=cnn(3))
    give(site, percent="100")
    path = site.home / "slots.json"

    def follow(**change):
        edit_slots(path, "digits", lambda m: m.replace(**change))
        assert running.control.reconcile().ok

    follow(candidate=three)
    assert answered_by(running) == "1"  # in shadow the share stays
    follow(champion=three, last_good=two, candidate=None, probation=True)
    assert answered_by(running) == "3"
    assert spoke(site, "show")[0]["rests"]
    follow(champion=two, last_good=two, probation=False)
    assert answered_by(running) == "1"


def test_the_right_answers_of_both_are_counted(site, run, two):
    running = run(site)
    give(site, percent="100")
    running.infer({**body(), "id": "r1"})
    running.http.post("/v2/models/digits/feedback", json={"id": "r1", "label": 0})
    running.close()  # writes what is captured
    (found,) = show(SpokeHome(site.home))
    assert (found.challenger, found.rests) == (None, True)  # the server is away
    running = run(site)
    (found,) = show(SpokeHome(site.home))
    assert found.challenger is not None
    assert found.challenger.labelled == 1


@pytest.mark.parametrize("version", [2, 7])
def test_only_a_version_that_is_kept_here_may_challenge(site, two, version):
    before = (site.home / "slots.json").read_bytes()
    with pytest.raises(ChallengerUnknown, match=r"there are: 1"):
        set_challenger(SpokeHome(site.home), "digits", version, percent=5, sticky=False)
    assert (site.home / "slots.json").read_bytes() == before


def test_a_model_that_is_not_served_is_named(site, two):
    for act in (lambda h: stop(h, "nope"), lambda h: set_challenger(h, "nope", 1, percent=5, sticky=False)):
        with pytest.raises(ChallengerUnknown, match="nope"):
            act(SpokeHome(site.home))


def test_one_that_the_server_cannot_use_is_taken_back(site, run, two):
    give(site, percent="30")
    outputs = (
        TensorContract(name="features", datatype="FP32", shape=(-1, 32)),
        TensorContract(name="logits", datatype="FP32", shape=(-1, K)),
    )
    image_ = TensorContract(name="image", datatype="FP32", shape=(-1, 1, 8, 8), low=0, high=16)
    odd = site.publish(9, contract=FeatureContract(task="embedding", inputs=(image_,), outputs=outputs))
    edit_slots(site.home / "slots.json", "digits", lambda m: m.replace(candidate=odd))
    run(site)
    refused = spoke_error(site, "set", "--model", "digits", "--version", "9", "--percent", "5")
    assert refused == "challenger_refused"
    assert read_slots(site.home / "slots.json").models["digits"].challenger.percent == 30


def test_one_whose_file_is_damaged_is_taken_back(site, run, two):
    running = run(site)
    one = read_slots(site.home / "slots.json").models["digits"].last_good
    path = site.weights(one)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert spoke_error(site, "set", "--model", "digits", "--version", "1", "--percent", "100") == "challenger_refused"
    assert read_slots(site.home / "slots.json").models["digits"].challenger is None
    assert answered_by(running) == "2"


def spoke_error(site, *words):
    from model_formats.core.errors import SpokeshaveError

    result = CliRunner().invoke(group, ["--home", str(site.home), "challenger", *words])
    assert isinstance(result.exception, SpokeshaveError), result.output
    return result.exception.code


def test_its_version_can_be_asked_for_by_number_too(site, run, two):
    running = run(site)
    give(site, percent="1")
    answer = running.http.post("/v2/models/digits/versions/1/infer", json=body())
    assert answer.json()["model_version"] == "1"

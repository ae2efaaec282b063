"""The server does what slots.json says: starts alone, swaps, keeps what works, rolls back, lets go."""

import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest

from spoke_agent.server.app.server import ServeRefused
from spoke_agent.server.models import model_set
from spoke_agent.server_api.client import ControlClient
from spoke_agent.server_api.errors import ServerUnreachable
from sync.core.types import Reason
from tests.spoke_agent.server.sites import cnn, digits_contract, image
from tests.spoke_agent.server.test_requests import body


def version_of(running):
    return running.infer(body()).json()["model_version"]


def test_without_slots_it_starts_and_says_so(site, run):
    running = run(site)
    assert running.http.get("/v2/health/live").status_code == 200
    assert running.http.get("/v2/health/ready").status_code == 200
    assert running.infer(body()).status_code == 404
    assert (site.home / "run/server.port").read_text() == str(running.port)
    assert running.control.alive()


def test_started_alone_it_serves_what_slots_say(site, run):
    slot = site.publish(1)
    site.slots(champion=slot)
    running = run(site)
    assert version_of(running) == "1"
    (serving,) = running.control.serving()
    assert (serving.index, serving.version, serving.engine, serving.adapted) == (slot.index, 1, "onnxruntime", False)
    assert serving.file == running.server.models.live["digits"].answering.file


def test_while_it_starts_callers_are_told_to_come_again(site, run, monkeypatch):
    site.slots(champion=site.publish(1))
    asked, go_on, load = threading.Event(), threading.Event(), model_set.load_version

    def slow(*args, **kwargs):
        asked.set()
        assert go_on.wait(30)
        return load(*args, **kwargs)

    monkeypatch.setattr(model_set, "load_version", slow)
    starting = threading.Thread(target=lambda: run(site))
    starting.start()
    try:
        assert asked.wait(30)
        door = httpx.HTTPTransport(uds=str(site.home / "run/server.sock"))
        with httpx.Client(transport=door, base_url="http://spoke") as early:
            assert early.get("/v2/health/live").status_code == 200
            assert early.get("/v2/health/ready").status_code == 503
            for answer in (early.post("/v2/models/digits/infer", json=body()), early.get("/v2/models/digits/ready")):
                assert answer.status_code == 503
                assert answer.headers["Retry-After"] == "1"
                assert answer.json() == {"error": "model 'digits': not every model is loaded yet"}
            go_on.set()
            starting.join(30)
            assert early.get("/v2/health/ready").status_code == 200
            assert early.post("/v2/models/digits/infer", json=body()).json()["model_version"] == "1"
            assert early.post("/v2/models/nobody/infer", json=body()).status_code == 404
    finally:
        go_on.set()
        starting.join(30)


def test_reconcile_swaps_and_tells_what_it_measured(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    site.slots(champion=site.publish(2))
    state = running.control.reconcile().models["digits"]
    assert state.champion.loaded
    assert state.champion.golden.ok
    assert state.champion.latency_ms > 0
    assert state.champion.file.startswith("sha256:")
    assert state.swap_ms is not None
    assert version_of(running) == "2"


def test_rollback_in_probation_finds_last_good_loaded(site, run):
    one, two = site.publish(1), site.publish(2)
    site.slots(champion=one)
    running = run(site)
    site.slots(champion=two, last_good=one, probation=True)
    running.control.reconcile()
    before = running.server.models.live["digits"].last_good
    site.slots(champion=one, last_good=one)
    state = running.control.reconcile().models["digits"]
    assert running.server.models.live["digits"].answering is before
    assert state.swap_ms < 1000
    assert version_of(running) == "1"


def test_a_candidate_is_loaded_but_answers_nobody(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    site.slots(champion=running.server.models.live["digits"].slots.champion, candidate=site.publish(2))
    state = running.control.reconcile().models["digits"]
    assert state.candidate.loaded
    assert version_of(running) == "1"
    assert running.http.post("/v2/models/digits/versions/2/infer", json=body()).status_code == 404


def broken(site):
    slot = site.publish(2)
    site.weights(slot).write_bytes(b"not the model")
    return slot, Reason.PACKAGE_TAMPERED


def missing(site):
    slot = site.publish(2)
    site.weights(slot).unlink()
    return slot, Reason.PACKAGE_INVALID


def off_by_much(site):
    return site.publish(2, golden_offset=5.0), Reason.GOLDEN_MISMATCH


def other_model(site):
    slot = site.publish(2, model="other")
    return slot, Reason.PACKAGE_INVALID


FAULTS = [broken, missing, off_by_much, other_model]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("role", ["champion", "candidate"])
def test_a_version_that_cannot_be_served_changes_nothing_for_callers(site, run, fault, role):
    one = site.publish(1)
    site.slots(champion=one)
    running = run(site)
    slot, reason = fault(site)
    site.slots(**({"champion": slot, "last_good": one} if role == "champion" else {"champion": one, "candidate": slot}))
    state = getattr(running.control.reconcile().models["digits"], role)
    assert not state.loaded
    assert state.reason is reason
    assert state.detail
    assert version_of(running) == "1"
    assert running.http.get("/v2/health/ready").status_code == 200


def test_after_a_restart_a_broken_champion_gives_way_to_last_good(site, run):
    one = site.publish(1)
    slot, _ = broken(site)
    site.slots(champion=slot, last_good=one)
    running = run(site)
    assert version_of(running) == "1"
    assert running.control.serving()[0].version == 1


def test_when_nothing_can_be_loaded_callers_hear_why(site, run):
    slot, _ = broken(site)
    site.slots(champion=slot)
    running = run(site)
    answer = running.infer(body())
    assert answer.status_code == 503
    assert "its bytes are" in answer.json()["error"]
    assert running.http.get("/v2/health/ready").status_code == 503


def test_a_damaged_slots_file_changes_nothing(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    (site.home / "slots.json").write_bytes(b'{"kind": "slots", "schema": 1, "models": {"digits": 7}}')
    with pytest.raises(ServerUnreachable, match=r"models\.digits"):
        running.control.reconcile()
    assert version_of(running) == "1"


def test_a_retired_model_is_gone(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    site.clear()
    running.control.reconcile()
    assert running.infer(body()).status_code == 404
    assert running.control.serving() == ()


def test_a_second_server_on_one_home_is_refused(site, run):
    run(site)
    with pytest.raises(ServeRefused, match="already"):
        run(site)


def test_a_control_client_without_a_server_says_so(site):
    client = ControlClient(site.home / "run/control.sock")
    with pytest.raises(ServerUnreachable):
        client.stats()
    assert not client.alive()
    client.close()


def test_a_memory_ceiling_refuses_the_model_and_serves_on(site, run):
    one = site.publish(1)
    site.slots(champion=one)
    running = run(site, memory_mb=1000)
    site.slots(champion=site.publish(2, memory_mb=1000), last_good=one)
    state = running.control.reconcile().models["digits"].champion
    assert state.reason is Reason.NO_MEMORY
    assert "MB are in use" in state.detail
    assert version_of(running) == "1"


def test_twenty_swaps_under_load_fail_nobody_and_each_answer_is_of_one_version(site, run):
    slots = [site.publish(1), site.publish(2)]
    site.slots(champion=slots[0])
    running = run(site)
    x = image(1, seed=5)
    request = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": x.ravel().tolist()}]}
    truths: dict[str, list[float]] = {}
    answered: Counter[str] = Counter()
    failures: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=running.url) as http:
            while not stop.is_set():
                answer = http.post("/v2/models/digits/infer", json=request)
                if answer.status_code != 200:
                    failures.append(answer.text)
                    continue
                got = answer.json()
                values = got["outputs"][0]["data"]
                if not np.allclose(values, truths.setdefault(got["model_version"], values), rtol=1e-3, atol=1e-4):
                    failures.append("an answer of a mixture")
                answered[got["model_version"]] += 1

    def until_answered_by(version: str) -> None:
        before, end = answered[version], time.monotonic() + 30
        while answered[version] == before:
            assert time.monotonic() < end, f"nobody was answered by version {version}"
            time.sleep(0.001)

    callers = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for caller in callers:
        caller.start()
    until_answered_by("1")
    for i in range(1, 21):
        site.slots(champion=slots[i % 2], last_good=slots[(i + 1) % 2], probation=True)
        assert running.control.reconcile().models["digits"].swap_ms is not None
        until_answered_by(str(slots[i % 2].version))
    stop.set()
    for caller in callers:
        caller.join()
    assert failures == []
    assert set(truths) == {"1", "2"}


def test_stopping_answers_what_was_taken(site, run):
    site.slots(champion=site.publish(1, proto=cnn(1, layers=20, channels=128)))
    running = run(site, drain_s=30)
    answers: list[int] = []

    def ask() -> None:
        with httpx.Client(base_url=running.url, timeout=30) as http:
            answers.append(http.post("/v2/models/digits/infer", json=body(100)).status_code)

    caller = threading.Thread(target=ask)
    batcher = running.server.models.live["digits"].answering.batcher
    caller.start()
    while batcher.idle:
        assert caller.is_alive()
    running.close()
    caller.join()
    assert answers == [200]


def test_clip_and_count_policies_let_values_through(site, run):
    site.slots(champion=site.publish(1, contract=digits_contract("clip")))
    running = run(site)
    high = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [99.0] * 64}]}
    top = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [16.0] * 64}]}
    assert running.infer(high).json() == running.infer(top).json()
    site.slots(champion=site.publish(2, contract=digits_contract("count")))
    running.control.reconcile()
    assert running.infer(high).status_code == 200
    assert 'spoke_out_of_contract_total{model="digits"} 2' in running.http.get("/metrics").text

"""A caller that follows itself is answered past the lane, as quickly as that goes, and sees and leaves behind the same."""

import json
import socket

import httpx
import numpy as np
import pytest
from onnx import helper

from model_formats.core.runtime import RunFailed
from tests.spoke_agent.server.sites import cnn, digits_contract, image
from tests.spoke_agent.server.test_requests import body

PATH = "/v2/models/digits/infer"


def champion(running):
    return running.server.models.live["digits"].answering


@pytest.fixture
def queued(monkeypatch):
    """Start to watch a server: the rows of each request that goes through its lane."""

    def watch(running):
        version, found = champion(running), []
        submit = version.batcher.submit
        monkeypatch.setattr(version.batcher, "submit", lambda job: (found.append(job.rows), submit(job)))
        return found

    return watch


@pytest.fixture
def served(site, run):
    """One server on `digits@1`."""
    site.slots(champion=site.publish(1))
    return run(site)


def test_only_who_follows_itself_is_answered_past_the_lane(served, queued):
    through = queued(served)
    with httpx.Client(base_url=served.url) as one, httpx.Client(base_url=served.url) as other:
        asked = [one.post(PATH, json=body(rows)).json()["outputs"][0] for rows in (1, 2, 3)]
        assert through == [1]
        assert [o["shape"] for o in asked] == [[1, 10], [2, 10], [3, 10]]
        for _ in range(3):
            other.post(PATH, json=body(4)), one.post(PATH, json=body(5))
    assert through == [1, 4, 5, 4, 5, 4, 5]


def test_requests_that_come_together_share_a_run(served, queued):
    through = queued(served)
    served.infer(body())
    one = json.dumps(body()).encode()
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (PATH.encode(), len(one), one)
    runs = champion(served).counts.run_us.size
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(request * 4)
        got = b""
        while got.count(b"HTTP/1.1 200") < 4:
            got += connection.recv(65536)
    assert len(through) == 5
    assert champion(served).counts.run_us.size == runs + 1


def test_answers_counts_and_rows_are_those_of_the_lane(site, run, queued, eventually):
    site.slots(champion=site.publish(1))
    told = []
    for alone in (False, True):
        running = run(site)
        through = queued(running)
        if not alone:
            champion(running).batcher.depth_rows = 1  # as if something waited, so that nothing goes past it
        answers = [running.infer(body(rows, id=f"r{alone}{rows}")).json()["outputs"] for rows in (1, 2, 3)]
        champion(running).batcher.depth_rows = 0
        assert len(through) == (1 if alone else 3)
        counts = champion(running).counts
        eventually(lambda running=running: running.server.capture.stored_rows == 6)
        sizes = [h.size for h in (counts.queue_us, counts.run_us, counts.request_us, counts.batch_rows)]
        asked = champion(running).model_counts.requests
        told.append((answers, counts.requests, counts.rows, counts.errors, counts.batch_rows.counts, sizes, asked))
        running.close()
    assert told[0] == told[1]


def test_an_adapter_answers_a_lone_caller(site, run, queued):
    slot = site.publish(1)
    site.slots(champion=slot, adapter=site.adapter(slot, winner=3))
    running = run(site)
    through = queued(running)
    winners = []
    for parameters in ({}, {}, {"adapter": "none"}, {"adapter": "local"}):
        answer = running.infer(body(parameters=parameters)).json()
        winners.append(int(np.argmax(answer["outputs"][0]["data"])))
    assert through == [1]
    assert winners[0] == winners[1] == winners[3] == 3 != winners[2]
    assert running.infer(body(parameters={"adapter": "nope"})).status_code == 404


@pytest.mark.parametrize(
    ("policy", "status", "answered"), [("refuse", 400, 2), ("clip", 200, 3), ("count", 200, 3)], ids=["refuse", "clip", "count"]
)
def test_what_is_out_of_contract_is_judged_once(site, run, policy, status, answered):
    site.slots(champion=site.publish(1, contract=digits_contract(policy)))
    running = run(site)
    wild = body()
    wild["inputs"][0]["data"][5] = 99.0
    assert [running.infer(asked).status_code for asked in (body(), wild, body())] == [200, status, 200]
    version = champion(running)
    assert version.model_counts.out_of_contract == 1
    assert version.model_counts.requests == 3
    assert version.counts.requests == answered


def test_a_deadline_holds_for_a_lone_caller(served):
    answers = [served.infer(body(parameters={"timeout": us})).status_code for us in (10_000_000, 10_000_000, 1, 10_000_000)]
    assert answers == [200, 200, 504, 200]
    assert served.infer(body(parameters={"timeout": "soon"})).status_code == 400


def test_a_model_that_fails_is_told_and_counted_once(served, monkeypatch):
    version = champion(served)
    served.infer(body())

    def fail(inputs, outputs, adapter):
        raise RunFailed("it broke")

    with monkeypatch.context() as broken:
        broken.setattr(version.batcher, "_run", fail)
        assert served.infer(body()).status_code == 500
    assert served.infer(body()).status_code == 200
    assert (version.counts.errors, version.counts.requests, version.model_counts.requests) == (1, 3, 3)


def test_a_model_that_gives_other_rows_than_it_got_is_caught(site, run):
    proto = cnn(1)
    one_row = next(node for node in proto.graph.node if "logits" in node.output)
    one_row.output[0] = "all"
    proto.graph.node.append(helper.make_node("ReduceMean", ["all"], ["logits"], axes=[0], keepdims=1))
    proto.opset_import[0].version = 13
    site.slots(champion=site.publish(1, proto=proto, golden_inputs={"image": image(1)}))
    running = run(site)
    assert [running.infer(body(rows)).status_code for rows in (1, 1, 2, 2, 1)] == [200, 200, 500, 500, 200]

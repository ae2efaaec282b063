"""A caller that follows itself is answered past the queue, as quickly as that goes, and sees and leaves behind the same."""

import json
import re
import socket

import httpx
import numpy as np
import pytest
from onnx import helper

from spoke_agent.data.store import open_data
from tests.spoke_agent.server.sites import cnn, digits_contract, image
from tests.spoke_agent.server.test_requests import body, expected

PATH = "/v2/models/digits/infer"


def champion(running):
    return running.server.models.live["digits"].answering


def picture(seed, **extra):
    x = image(1, seed).astype(int)
    return {**extra, "inputs": [{"name": "image", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}]}


def logits(running, seed):
    return expected(running, image(1, seed)).ravel()


def answered(answer):
    return np.array(answer.json()["outputs"][0]["data"], np.float32)


def paths(running):
    """Requests answered so far on each path, as `/metrics` tells."""
    found = re.findall(
        r'^spoke_answered_requests_total\{.*path="(\w+)"\} (\d+)$', running.http.get("/metrics").text, re.MULTILINE
    )
    return {path: int(count) for path, count in found}


@pytest.fixture
def served(site, run):
    """One server on `digits@1`."""
    site.slots(champion=site.publish(1))
    return run(site)


def test_only_who_follows_itself_is_answered_past_the_queue(served):
    with httpx.Client(base_url=served.url) as one, httpx.Client(base_url=served.url) as other:
        asked = [one.post(PATH, json=body(rows)).json()["outputs"][0] for rows in (1, 2, 3)]
        assert paths(served) == {"batched": 1, "direct": 2}
        assert [o["shape"] for o in asked] == [[1, 10], [2, 10], [3, 10]]
        for _ in range(3):
            other.post(PATH, json=body(4)), one.post(PATH, json=body(5))
    assert paths(served) == {"batched": 7, "direct": 2}


def pipelined(running, bodies):
    """Send these requests in one piece on one connection; returns the bodies of the answers."""
    texts = [json.dumps(one).encode() for one in bodies]
    requests = [b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (PATH.encode(), len(t), t) for t in texts]
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(b"".join(requests))
        got = b""
        while got.count(b"HTTP/1.1 200") < len(texts) or not got.endswith(b"}"):
            got += connection.recv(65536)
    return [json.loads(part.partition(b"\r\n\r\n")[2]) for part in got.split(b"HTTP/1.1 200 OK")[1:]]


def test_requests_that_come_together_share_a_run(served):
    served.infer(body())
    pipelined(served, [body()] * 4)
    counts = champion(served).counts
    assert paths(served) == {"batched": 5, "direct": 0}
    assert (counts.run_us.size, counts.requests) == (2, 5)


def test_answers_counts_and_rows_are_those_of_the_queue(site, run, eventually):
    site.slots(champion=site.publish(1))
    told = []
    for path in ("batched", "direct"):
        running = run(site)
        answers = []
        for rows in (1, 2, 3):
            if path == "batched":
                with httpx.Client(base_url=running.url) as new:  # a connection of its own follows nobody
                    answers.append(new.post(PATH, json=body(rows, id=f"r{path}{rows}")).json()["outputs"])
            else:
                answers.append(running.infer(body(rows, id=f"r{path}{rows}")).json()["outputs"])
        assert paths(running)["direct"] == (2 if path == "direct" else 0)
        counts = champion(running).counts
        eventually(lambda running=running: running.server.capture.stored_rows == 6)
        sizes = [h.size for h in (counts.queue_us, counts.run_us, counts.request_us, counts.batch_rows)]
        asked = champion(running).model_counts.requests
        told.append((answers, counts.requests, counts.rows, counts.errors, counts.batch_rows.counts, sizes, asked))
        running.close()
    assert told[0] == told[1]


def test_each_answer_and_each_stored_row_is_its_own(served, site, eventually):
    for seed in range(20):
        np.testing.assert_array_equal(answered(served.infer(picture(seed, id=f"r{seed}"))), logits(served, seed))
    assert paths(served) == {"batched": 1, "direct": 19}
    eventually(lambda: served.server.capture.stored_rows == 20)
    store = open_data(site.home)
    try:
        stored = list(store.batches("digits"))
    finally:
        store.close()
    rows = [row for batch in stored for row in zip(batch.inputs["image"], batch.outputs["logits"], strict=True)]
    for seed, (given, found) in enumerate(rows):
        np.testing.assert_array_equal(given, image(1, seed)[0])
        np.testing.assert_array_equal(found, logits(served, seed))


def test_a_candidate_sees_each_row_with_its_answer(site, run, eventually):
    site.slots(champion=site.publish(1), candidate=site.publish(2, proto=cnn(28)))
    running = run(site)
    for seed in range(20):
        running.infer(picture(seed))
    shadow = lambda: running.control.stats().models["digits"].shadow  # noqa: E731 - asked again and again
    eventually(lambda: shadow().rows == 20)
    other = running.server.models.live["digits"].candidate.loaded_version.session
    theirs = [int(other.run({"image": image(1, seed)}, ["logits"])[0].argmax()) for seed in range(20)]
    differ = sum(int(logits(running, seed).argmax()) != their for seed, their in enumerate(theirs))
    assert 0 < differ < 20
    assert shadow().disagreements == differ


def test_an_adapter_answers_a_lone_caller(site, run):
    slot = site.publish(1)
    site.slots(champion=slot, adapter=site.adapter(slot, winner=3))
    running = run(site)
    winners = []
    for parameters in ({}, {}, {"adapter": "none"}, {"adapter": "local"}):
        answer = running.infer(body(parameters=parameters)).json()
        winners.append(int(np.argmax(answer["outputs"][0]["data"])))
    assert paths(running) == {"batched": 1, "direct": 3}
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


def test_a_model_that_gives_other_rows_than_it_got_is_caught_and_each_failure_counted_once(site, run):
    proto = cnn(1)
    one_row = next(node for node in proto.graph.node if "logits" in node.output)
    one_row.output[0] = "all"
    proto.graph.node.append(helper.make_node("ReduceMean", ["all"], ["logits"], axes=[0], keepdims=1))
    proto.opset_import[0].version = 13
    site.slots(champion=site.publish(1, proto=proto, golden_inputs={"image": image(1)}))
    running = run(site)
    assert [running.infer(body(rows)).status_code for rows in (1, 1, 2, 2, 1)] == [200, 200, 500, 500, 200]
    version = champion(running)
    assert (version.counts.errors, version.counts.requests, version.model_counts.requests) == (2, 5, 5)
    assert paths(running) == {"batched": 1, "direct": 4}

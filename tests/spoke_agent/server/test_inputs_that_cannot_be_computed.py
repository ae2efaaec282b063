"""A value that the model cannot compute is its caller's fault: 400 in our words, alone, and no error of the version."""

import json
import socket
from contextlib import nullcontext

import numpy as np
import onnx
import pytest

from model_formats.documents.feature_contract import FeatureContract, TensorContract
from tests.network.words import VOCABULARY, WORDS, write_words

PATH, PLANTED = "/v2/models/words/infer", 7_461_938_205
CONTRACT = FeatureContract(
    task="classification",
    inputs=(TensorContract(name="ids", datatype="INT64", shape=(-1, WORDS)),),
    outputs=(TensorContract(name="logits", datatype="FP32", shape=(-1, 2)),),
    classes=("no", "yes"),
)


@pytest.fixture
def served(site, run, words):
    return run(site)


@pytest.fixture
def words(site, tmp_path):
    """`words@1` in the site's store, to be served."""
    proto = onnx.load(write_words(tmp_path / "words") / "words.onnx")
    golden = {"ids": np.arange(4 * WORDS).reshape(4, WORDS)}
    site.slots(model="words", champion=site.publish(1, model="words", proto=proto, contract=CONTRACT, golden_inputs=golden))


def body(*, planted: bool = False, rows: int = 1) -> dict:
    ids = np.full((rows, WORDS), 7)
    ids[-1, 2] = PLANTED if planted else VOCABULARY - 1
    return {"inputs": [{"name": "ids", "datatype": "INT64", "shape": [rows, WORDS], "data": ids.ravel().tolist()}]}


def counts(served):
    return served.server.models.live["words"].answering.counts


def test_the_caller_is_told_in_our_words(served, capfd):
    for _ in range(3):  # through the queue, as a known form, and past the queue
        answer = served.http.post(PATH, json=body(planted=True))
        assert answer.status_code == 400
        assert "ids [1, 6]" in answer.json()["error"]
        assert str(PLANTED) not in answer.text
        assert "Gather" not in answer.text
    assert counts(served).errors == 0
    assert served.server.models.counts["words"].bad_requests == 3
    assert str(PLANTED) not in "".join(capfd.readouterr())


def test_a_grpc_call_past_the_queue_is_told_and_counted_the_same(site, run, words):
    triton = pytest.importorskip("tritonclient.grpc")
    served = run(site, grpc_port=0)
    with triton.InferenceServerClient(f"127.0.0.1:{served.server.grpc_port}") as client:
        for planted in (False, True, False, True):
            (tensor,) = body(planted=planted)["inputs"]
            given = triton.InferInput("ids", tensor["shape"], "INT64")
            given.set_data_from_numpy(np.array(tensor["data"], np.int64).reshape(tensor["shape"]))
            with pytest.raises(Exception, match="cannot compute these inputs") if planted else nullcontext():
                client.infer("words", [given])
        statistics = client.get_inference_statistics("words", as_json=True)["model_stats"][0]
    assert statistics["inference_stats"]["success"]["count"] == "2"
    found = counts(served)
    assert (found.requests, found.direct, found.errors) == (4, 4, 0)
    assert served.server.models.counts["words"].bad_requests == 2


def test_only_the_request_that_holds_it_is_refused_of_those_that_share_a_run(served):
    wanted = served.http.post(PATH, json=body()).json()["outputs"]
    mixed = [body(), body(planted=True), body(rows=2), body(planted=True, rows=3), body()]
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"".join(_request(one) for one in mixed))
        statuses, answers = _answers(connection, len(mixed))
    assert statuses == [200, 400, 200, 400, 200]
    assert answers[0]["outputs"] == answers[4]["outputs"] == wanted
    assert answers[2]["outputs"][0]["shape"] == [2, 2]
    assert counts(served).errors == 0
    assert served.server.models.live["words"].answering.batcher.depth_rows == 0


def test_nothing_is_left_of_a_batch_in_which_nobody_can_be_answered(served):
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(_request(body(planted=True)) * 3)
        statuses, _ = _answers(connection, 3)
    assert statuses == [400, 400, 400]
    assert served.server.models.live["words"].answering.batcher.depth_rows == 0
    assert served.http.post(PATH, json=body()).status_code == 200


def _request(one: dict) -> bytes:
    data = json.dumps(one).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (PATH.encode(), len(data), data)


def _answers(connection: socket.socket, number: int) -> tuple[list[int], list[dict]]:
    statuses, answers, stream = [], [], connection.makefile("rb")
    for _ in range(number):
        statuses.append(int(stream.readline().split()[1]))
        length = 0
        while line := stream.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        answers.append(json.loads(stream.read(length)))
    return statuses, answers

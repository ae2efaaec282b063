"""What a caller sees: metadata, inference in JSON and binary, ids, outputs, versions, errors."""

import gzip
import json
import socket
import time
import zlib

import numpy as np
import pytest

from tests.spoke_agent.server.sites import image


def body(rows=1, **extra):
    x = image(rows)
    return {"inputs": [{"name": "image", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}], **extra}


def expected(shared, x):
    version = shared.server.models.live["digits"].answering
    return version.loaded_version.session.run({"image": x}, ["logits"])[0]


def test_flat_and_nested_json_give_the_same_answer(shared):
    x = image(2)
    flat = shared.infer(body(2)).json()
    nested = body(2)
    nested["inputs"][0]["data"] = x.tolist()
    assert shared.infer(nested).json() == flat
    got = np.array(flat["outputs"][0]["data"]).reshape(flat["outputs"][0]["shape"])
    np.testing.assert_allclose(got, expected(shared, x), rtol=1e-5)
    assert flat["model_name"] == "digits"
    assert flat["model_version"] == "1"


def test_the_id_comes_back_only_when_it_was_given(shared):
    assert shared.infer(body(id="till-7")).json()["id"] == "till-7"
    assert "id" not in shared.infer(body()).json()


def test_hidden_outputs_are_neither_listed_nor_given(shared):
    assert [o["name"] for o in shared.http.get("/v2/models/digits").json()["outputs"]] == ["logits"]
    answer = shared.infer(body(outputs=[{"name": "features"}]))
    assert answer.status_code == 400
    assert "features" in answer.json()["error"]


def test_a_binary_tensor_goes_in_and_comes_out(shared):
    x = image(3)
    head = json.dumps(
        {
            "inputs": [
                {"name": "image", "shape": [3, 1, 8, 8], "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    answer = shared.http.post(
        "/v2/models/digits/infer", content=head + x.tobytes(), headers={"Inference-Header-Content-Length": str(len(head))}
    )
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 3 * 10 * 4}
    got = np.frombuffer(answer.content[length:], np.float32).reshape(3, 10)
    np.testing.assert_allclose(got, expected(shared, x), rtol=1e-5)


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_requests_and_answers(shared, coding, pack):
    plain = shared.infer(body(40)).json()
    answer = shared.http.post(
        "/v2/models/digits/infer",
        content=pack(json.dumps(body(40)).encode()),
        headers={"Content-Encoding": coding, "Accept-Encoding": coding},
    )
    assert answer.headers["Content-Encoding"] == coding
    assert answer.json() == plain


def test_the_time_of_a_request_is_what_its_caller_waited_at_most(shared):
    def counted():
        counts = shared.server.models.live["digits"].answering.counts
        return counts.request_us.total, counts.queue_us.total

    one = json.dumps(body()).encode()
    request = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(one), one)
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        before, started = counted(), time.perf_counter()
        for _ in range(200):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        waited_us = (time.perf_counter() - started) * 1e6
    assert all(0 < now - then < waited_us for now, then in zip(counted(), before, strict=True))


def test_versions_can_be_asked_for(shared):
    assert shared.http.post("/v2/models/digits/versions/1/infer", json=body()).status_code == 200
    answer = shared.http.post("/v2/models/digits/versions/9/infer", json=body())
    assert answer.status_code == 404
    assert "'9'" in answer.json()["error"]


def test_pipelined_requests_are_answered_in_order(shared):
    one = json.dumps(body(id="first")).encode()
    two = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        connection.sendall(head % len(one) + one + two + b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert data.count(b"HTTP/1.1 ") == 3
    assert data.index(b"first") < data.index(b'{"live":true}') < data.index(b"404 Not Found")


def test_pipelined_requests_share_a_run(shared):
    def runs():
        return shared.http.get("/v2/models/digits/stats").json()["model_stats"][0]["execution_count"]

    one = json.dumps(body()).encode()
    request = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(one), one)
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        before, answers = runs(), b""
        connection.sendall(10 * request)
        while answers.count(b"HTTP/1.1 200") < 10 or not answers.endswith(b"}"):
            answers += connection.recv(65536)
    assert runs() - before <= 4


def test_the_unix_socket_answers_the_same(shared):
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=str(shared.site.home / "run/server.sock"))) as http:
        assert http.post("http://spoke/v2/models/digits/infer", json=body()).json() == shared.infer(body()).json()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2", 200),
        ("/v2/models/digits/ready", 200),
        ("/v2/models/nope/ready", 404),
        ("/v2/models/nope", 404),
        ("/v2/models/digits/versions/7", 404),
        ("/v2/models/digits/config", 200),
        ("/v2/models/digits/stats", 200),
        ("/v2/models/stats", 200),
        ("/v2/systemsharedmemory/status", 501),
        ("/metrics", 200),
        ("/", 404),
        ("/v2/models/d%ff", 404),
    ],
)
def test_paths_answer_with_the_protocols_status(shared, path, status):
    answer = shared.http.get(path)
    assert answer.status_code == status
    if status >= 400:
        assert set(answer.json()) == {"error"}


def test_models_cannot_be_loaded_by_request(shared):
    assert shared.http.post("/v2/repository/models/digits/unload", json={}).status_code == 403
    assert shared.infer(body()).status_code == 200


def test_the_metrics_page_counts_what_happened(shared):
    shared.infer(body(2))
    page = shared.http.get("/metrics").text
    assert 'spoke_requests_total{model="digits"}' in page
    assert 'spoke_run_seconds_bucket{model="digits",version="1",role="answering",le="+Inf"}' in page
    assert 'engine="onnxruntime"' in page

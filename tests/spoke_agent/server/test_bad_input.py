"""Every kind of broken request gets the right status and a message that names the field; the server lives on."""

import copy
import json
import socket
import struct
import zlib

import pytest

from tests.spoke_agent.server.sites import image

GOOD = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": image().ravel().tolist()}]}


def changed(**tensor):
    body = copy.deepcopy(GOOD)
    body["inputs"][0].update(tensor)
    return body


def without(key):
    body = copy.deepcopy(GOOD)
    del body["inputs"][0][key]
    return body


NESTED = "[" * 900 + "]" * 900

CASES = {
    "not_json": (b"{", 400, "not JSON"),
    "empty_body": (b"", 400, "not JSON"),
    "a_list": (b"[]", 400, "JSON object"),
    "no_inputs": (b"{}", 400, "inputs"),
    "inputs_empty": (b'{"inputs":[]}', 400, "inputs"),
    "input_not_an_object": (b'{"inputs":[7]}', 400, "inputs[0]"),
    "name_missing": (without("name"), 400, "inputs[0].name"),
    "name_a_number": (changed(name=7), 400, "inputs[0].name"),
    "name_unknown": (changed(name="pixels"), 400, "'image' is missing"),
    "datatype_missing": (without("datatype"), 400, "datatype"),
    "datatype_unknown": (changed(datatype="FP31"), 400, "datatype"),
    "datatype_wrong": (changed(datatype="FP64"), 400, "must be FP32"),
    "shape_missing": (without("shape"), 400, "shape"),
    "shape_negative": (changed(shape=[-1, 1, 8, 8]), 400, "shape"),
    "shape_of_text": (changed(shape=["1", 1, 8, 8]), 400, "shape"),
    "shape_of_fractions": (changed(shape=[1.0, 1, 8, 8]), 400, "shape"),
    "shape_too_long": (changed(shape=[1] * 40), 400, "shape"),
    "shape_overflows": (changed(shape=[2**62, 2**62]), 400, "shape"),
    "shape_of_another_count": (changed(shape=[2, 1, 8, 8]), 400, "64 values"),
    "shape_of_another_rank": (changed(shape=[1, 64]), 400, "must be [-1, 1, 8, 8]"),
    "no_rows": (changed(shape=[0, 1, 8, 8], data=[]), 400, "no rows"),
    "data_missing": (without("data"), 400, "data is missing"),
    "data_text": (changed(data="aaaa"), 400, "data must be a list"),
    "data_of_text": (changed(data=["1"] * 64), 400, "must be numbers"),
    "data_ragged": (changed(data=[[1, 2], [3]]), 400, "regular"),
    "data_null": (changed(data=[None] * 64), 400, "must be numbers"),
    "data_nested_too_deep": (json.dumps(GOOD).replace(json.dumps(GOOD["inputs"][0]["data"]), NESTED).encode(), 400, "image"),
    "data_out_of_range": (changed(data=[17.0] * 64), 400, "outside 0.0..16.0"),
    "nan_in_json": (json.dumps(changed(data=[float("nan")] * 64)).encode(), 400, "not JSON"),
    "twice": ({"inputs": GOOD["inputs"] * 2}, 400, "twice"),
    "one_too_many": ({"inputs": [*GOOD["inputs"], {**GOOD["inputs"][0], "name": "other"}]}, 400, "'other' is unknown"),
    "hundred_thousand_keys": ({**GOOD, **{f"k{i}": i for i in range(100_000)}, "id": 3}, 400, "id"),
    "deep_nesting": (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "not JSON"),
    "id_a_number": ({**GOOD, "id": 7}, 400, "id"),
    "id_too_long": ({**GOOD, "id": "x" * 1000}, 400, "id"),
    "parameters_a_list": ({**GOOD, "parameters": []}, 400, "parameters"),
    "binary_flag_a_text": ({**GOOD, "parameters": {"binary_data_output": "yes"}}, 400, "binary_data_output"),
    "timeout_negative": ({**GOOD, "parameters": {"timeout": -5}}, 400, "timeout"),
    "adapter_a_number": ({**GOOD, "parameters": {"adapter": 5}}, 400, "adapter"),
    "adapter_unknown": ({**GOOD, "parameters": {"adapter": "nope"}}, 404, "'nope'"),
    "output_unknown": ({**GOOD, "outputs": [{"name": "nope"}]}, 400, "'nope'"),
    "output_without_name": ({**GOOD, "outputs": [{}]}, 400, "outputs[0].name"),
    "outputs_a_text": ({**GOOD, "outputs": "logits"}, 400, "outputs"),
    "classification": ({**GOOD, "outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, 400, "classification"),
    "binary_size_without_header": (changed(data=None, parameters={"binary_data_size": 256}), 400, "binary_data_size"),
    "raw_bytes_without_header": (b'{"inputs":[]}' + bytes(range(128, 255)), 400, "Inference-Header-Content-Length"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_request_is_named(shared, case):
    body, status, words = CASES[case]
    answer = shared.http.post("/v2/models/digits/infer", content=body if isinstance(body, bytes) else json.dumps(body).encode())
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert shared.infer(GOOD).status_code == 200


BINARY = {
    "length_longer_than_the_body": ("9999", {"binary_data_size": 256}, 256, "9999"),
    "length_negative": ("-1", {"binary_data_size": 256}, 256, "whole number"),
    "length_not_a_number": ("ten", {"binary_data_size": 256}, 256, "whole number"),
    "length_overflows": ("9" * 30, {"binary_data_size": 256}, 256, "whole number"),
    "size_negative": (None, {"binary_data_size": -1}, 256, "binary_data_size"),
    "size_a_fraction": (None, {"binary_data_size": 2.5}, 256, "binary_data_size"),
    "size_overflows": (None, {"binary_data_size": 2**63}, 256, "binary_data_size"),
    "size_beyond_the_body": (None, {"binary_data_size": 512}, 256, "only 256 bytes"),
    "size_against_shape": (None, {"binary_data_size": 128}, 128, "128 bytes"),
    "bytes_left_over": (None, {"binary_data_size": 256}, 300, "44 bytes follow"),
    "parameters_a_list": (None, [256], 256, "parameters"),
}


@pytest.mark.parametrize("case", BINARY)
def test_a_broken_binary_request_is_named(shared, case):
    header, parameters, size, words = BINARY[case]
    head = json.dumps(
        {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "parameters": parameters}]}
    ).encode()
    answer = shared.http.post(
        "/v2/models/digits/infer",
        content=head + b"\0" * size,
        headers={"Inference-Header-Content-Length": header or str(len(head))},
    )
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert shared.infer(GOOD).status_code == 200


TEXTS = {
    "length_cut": (b"\1\0", "cannot hold"),
    "element_cut": (struct.pack("<I", 9) + b"abc", "longer than what arrived"),
    "huge_length": (struct.pack("<I", 0xFFFFFFFF) + b"abc", "longer than what arrived"),
    "left_over": (struct.pack("<I", 1) + b"abc", "2 bytes more"),
    "not_utf8": (struct.pack("<I", 1) + b"\xff", "UTF-8"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_broken_text_tensors_are_named(shared, case):
    raw, words = TEXTS[case]
    head = json.dumps(
        {"inputs": [{"name": "in_BYTES", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    answer = shared.http.post(
        "/v2/models/echo/infer", content=head + raw, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def raw(shared, data, *, half_close=False):
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


HTTP = {
    "not_http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b" 400 "),
    "two_lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b" 400 "),
    "length_and_chunks": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b" 400 "),
    "length_negative": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b" 400 "),
    "length_huge": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n", b" 413 "),
    "length_overflows": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", b" 400 "),
    "chunk_huge": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n", b" 400 "),
    "many_headers": (b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: 1\r\n" % i for i in range(500)) + b"\r\n", b" 431 "),
    "long_header": (b"GET / HTTP/1.1\r\nHost: " + b"x" * 60_000 + b"\r\n\r\n", b" 431 "),
    "endless_head": (b"GET / HTTP/1.1\r\nHost: " + b"x" * 200_000, b" 431 "),
    "unknown_coding": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx", b" 415 "),
    "damaged_gzip": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", b" 400 "),
    "cut_deflate": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: deflate\r\nContent-Length: 12\r\n\r\n"
        + zlib.compress(b"abc" * 99)[:12],
        b" 400 ",
    ),
}


@pytest.mark.parametrize("case", HTTP)
def test_broken_http_is_answered_and_the_connection_ends(shared, case):
    data, status = HTTP[case]
    answer = raw(shared, data)
    assert status in answer.split(b"\r\n")[0]
    assert b'{"error":' in answer
    assert shared.infer(GOOD).status_code == 200


def test_a_half_closed_socket_still_gets_its_answer(shared):
    body = json.dumps(GOOD).encode()
    request = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert b'"logits"' in raw(shared, request, half_close=True)


def test_a_body_cut_by_the_caller_harms_nobody(shared):
    assert (
        raw(shared, b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{", half_close=True) == b""
    )
    assert shared.infer(GOOD).status_code == 200

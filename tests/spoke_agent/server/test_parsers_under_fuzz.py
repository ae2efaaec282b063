"""Laws of the parsers: what goes in comes out, and nothing but RequestInvalid ever comes from outside."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spoke_agent.server.protocol.json_codec import InferRequest, ResponseTemplate, parse_request, render_response
from spoke_agent.server.protocol.tensors import DTYPES, count_of, from_binary, from_json, to_binary, to_json
from spoke_agent.server_api.errors import RequestInvalid
from tests.fuzz import targets

NUMERIC = [name for name in DTYPES if name != "BYTES"]
shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(shapes)
    if datatype == "BYTES":
        texts = draw(st.lists(st.text(max_size=5), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        array = np.empty(len(texts), np.object_)
        array[:] = texts
        return datatype, array.reshape(shape)
    finite = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    return datatype, draw(hnp.arrays(DTYPES[datatype], shape, elements=hnp.from_dtype(DTYPES[datatype], **finite)))


@given(tensors())
def test_binary_tensors_come_out_as_they_went_in(tensor):
    datatype, array = tensor
    shape, count = count_of("x", list(array.shape))
    back = from_binary("x", datatype, shape, count, memoryview(to_binary(array)))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == DTYPES[datatype]


@given(tensors())
def test_json_tensors_come_out_as_they_went_in(tensor):
    datatype, array = tensor
    if datatype == "FP16":
        with pytest.raises(RequestInvalid):
            to_json("x", array)
        return
    shape, count = count_of("x", list(array.shape))
    data = orjson.loads(orjson.dumps(to_json("x", array), option=orjson.OPT_SERIALIZE_NUMPY))
    back = from_json("x", datatype, shape, count, data)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == DTYPES[datatype]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
tensor_like = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | json_values,
        "datatype": st.sampled_from(list(DTYPES)) | json_values,
        "shape": st.lists(st.integers(-2, 5), max_size=4) | json_values,
        "data": st.lists(st.integers(-5, 300) | st.booleans() | st.floats(), max_size=6) | json_values,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-2, 40)}) | json_values,
    },
)
request_like = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "inputs": st.lists(tensor_like, max_size=3) | json_values,
        "outputs": st.lists(st.fixed_dictionaries({"name": json_values}), max_size=2) | json_values,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_output", "timeout", "adapter"]), json_values) | json_values,
    },
)


@settings(max_examples=400)
@given(request_like | json_values, st.binary(max_size=40), st.integers(-5, 60) | st.none())
def test_nothing_but_a_refusal_comes_from_a_crafted_request(document, tail, shift):
    head = json.dumps(document).encode()
    length = None if shift is None else max(0, len(head) + (0 if shift > 20 else shift))
    try:
        request = parse_request(head + tail, length)
    except RequestInvalid:
        return
    assert isinstance(request, InferRequest)
    assert all(isinstance(a, np.ndarray) for a in request.inputs.values())


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 400) | st.none())
def test_nothing_but_a_refusal_comes_from_noise(data, length):
    with pytest.raises(RequestInvalid):
        parse_request(data, length)


@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans(), st.text(min_size=1, max_size=20))
def test_an_answer_reads_back(outputs, binary, request_id):
    words = ResponseTemplate("m%s", "1", [(f'y"{i}%d', datatype) for i, (datatype, _) in enumerate(outputs)])
    if not binary and any(datatype == "FP16" for datatype, _ in outputs):
        return
    request = InferRequest(request_id, {}, {}, None, binary, {})
    body, length = render_response(words, request, [a for _, a in outputs])
    head = json.loads(body[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m%s", "1", request_id)
    assert [told["name"] for told in head["outputs"]] == list(words.names)
    tail = memoryview(body)[length:] if length is not None else memoryview(b"")
    for (datatype, array), told in zip(outputs, head["outputs"], strict=True):
        shape, count = count_of("y", told["shape"])
        assert told["datatype"] == datatype
        if binary:
            size = told["parameters"]["binary_data_size"]
            back, tail = from_binary("y", datatype, shape, count, tail[:size]), tail[size:]
        else:
            back = from_json("y", datatype, shape, count, told["data"])
        np.testing.assert_array_equal(back, array)
    assert len(tail) == 0


pieces = st.sampled_from(
    [
        b"POST /v2/models/m/infer HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"Upgrade: h2c\r\n",
        b"\r\n",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"x" * 600,
    ]
)


@settings(max_examples=150)
@given(st.lists(pieces | st.binary(max_size=8), max_size=12))
def test_a_connection_outlives_whatever_it_is_fed(parts):
    targets.http(b"".join(parts))


@given(st.binary(max_size=120))
def test_a_request_behind_any_length_header_is_refused_or_read(data):
    targets.request(data)

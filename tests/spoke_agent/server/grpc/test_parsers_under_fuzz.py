"""Laws of the gRPC parser: what goes in comes out, and nothing but RequestInvalid ever comes from outside."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spoke_agent.server.grpc.codec import ParsedRequest, parse_infer, render_infer
from spoke_agent.server.grpc.messages import MESSAGES
from spoke_agent.server.protocol.json_codec import InferRequest
from spoke_agent.server.protocol.tensors import DTYPES, from_binary, to_binary
from spoke_agent.server_api.errors import RequestInvalid
from tests.fuzz import targets
from tests.spoke_agent.server.test_parsers_under_fuzz import tensors

Request, Answer = MESSAGES["ModelInferRequest"], MESSAGES["ModelInferResponse"]
FIELDS = [f.name for f in MESSAGES["InferTensorContents"].DESCRIPTOR.fields]
ids = st.text(max_size=8)
parameters = st.dictionaries(
    st.sampled_from(["timeout", "adapter", "sticky", "classification", "shared_memory_region"]),
    st.fixed_dictionaries({"int64_param": st.integers(-5, 5)}) | st.fixed_dictionaries({"string_param": ids}) | st.just({}),
    max_size=2,
)
contents = st.dictionaries(
    st.sampled_from(FIELDS), st.just([]) | st.just([1]) | st.lists(st.integers(0, 1), max_size=6), max_size=2
)
inputs = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "y", ""]), "datatype": st.sampled_from([*DTYPES, "", "FP8"])},
    optional={
        "shape": st.lists(st.integers(-2, 5) | st.integers(-(2**63), 2**63 - 1), max_size=18),
        "parameters": parameters,
        "contents": contents,
    },
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "model_name": ids,
        "id": ids | st.just("x" * 300),
        "parameters": parameters,
        "inputs": st.lists(inputs, max_size=3),
        "outputs": st.lists(st.fixed_dictionaries({"name": ids, "parameters": parameters}), max_size=2),
        "raw_input_contents": st.lists(st.binary(max_size=40), max_size=3),
    },
)


def message(given):
    given = {**given, "inputs": [dict(t) for t in given.get("inputs", [])]}
    for tensor in given["inputs"]:
        if "contents" in tensor:
            tensor["contents"] = {
                k: [str(v).encode() for v in values] if k == "bytes_contents" else values
                for k, values in tensor["contents"].items()
            }
    return Request(**given).SerializeToString()


def read(data):
    targets.grpc(data)  # the quick way and the whole parser agree
    try:
        asked = parse_infer(data)
    except RequestInvalid:
        return
    assert isinstance(asked.request, InferRequest)
    for name, array in asked.request.inputs.items():
        assert array.dtype == DTYPES[asked.request.datatypes[name]]


@settings(max_examples=400)
@given(requests)
def test_nothing_but_a_refusal_comes_from_a_crafted_message(given):
    read(message(given))


@settings(max_examples=300)
@given(requests, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), st.integers(0, 200))
def test_nothing_but_a_refusal_comes_from_a_damaged_message(given, changes, cut):
    data = bytearray(message(given))
    for place, value in changes:
        if data:
            data[place % len(data)] = value
    read(bytes(data[: cut or None]))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_nothing_but_a_refusal_comes_from_noise(data):
    read(data)


@given(tensors())
def test_raw_tensors_come_out_as_they_went_in(tensor):
    datatype, array = tensor
    request = Request(raw_input_contents=[to_binary(array)])
    request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    asked = parse_infer(request.SerializeToString())
    np.testing.assert_array_equal(asked.request.inputs["x"], array)
    answer = Answer.FromString(render_infer(asked, "m", "1", ["y"], [array]))
    assert answer.outputs[0].datatype == datatype
    back = from_binary("y", datatype, tuple(answer.outputs[0].shape), array.size, memoryview(answer.raw_output_contents[0]))
    np.testing.assert_array_equal(back, array)


@given(tensors())
def test_typed_tensors_come_out_as_they_went_in(tensor):
    datatype, array = tensor
    asked = ParsedRequest("m", None, InferRequest(None, {}, {}, None, True, {}), typed=True)
    answer = Answer.FromString(render_infer(asked, "m", "1", ["y"], [array]))
    if datatype == "FP16":
        assert answer.raw_output_contents  # it has no typed form
        return
    out = answer.outputs[0]
    request = Request()
    request.inputs.add(name="x", datatype=datatype, shape=out.shape, contents=out.contents)
    back = parse_infer(request.SerializeToString()).request.inputs["x"]
    np.testing.assert_array_equal(back, array)
    assert back.dtype == DTYPES[datatype]

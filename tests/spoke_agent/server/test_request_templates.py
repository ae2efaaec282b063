"""What was read before is read the short way, and says the same: heads by their bytes, JSON requests by their words."""

import asyncio
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_formats.documents.feature_contract import FeatureContract, TensorContract
from spoke_agent.server.caches import RequestCaches
from spoke_agent.server.caches.head_cache import RequestHead
from spoke_agent.server.caches.request_templates import RequestTemplates
from spoke_agent.server.http.transport import HttpLimits, HttpServer
from spoke_agent.server.models.contract_check import Signature
from spoke_agent.server.protocol.json_codec import parse_request
from spoke_agent.server_api.errors import RequestInvalid

# ---- requests


def outcome(parse, *given):
    """What a parser makes of a request, in a form that can be compared."""
    try:
        request = parse(*given)
    except RequestInvalid as e:
        return e.message
    inputs = {name: (a.dtype, a.shape, a.tolist()) for name, a in request.inputs.items()}
    rest = (request.id, request.datatypes, request.outputs, request.binary_default, request.parameters)
    return repr((inputs, rest))  # as text, in which a NaN is itself


def request(data, shape=None, **extra):
    return {**extra, "inputs": [{"name": "x", "shape": shape or [len(data)], "datatype": "FP32", "data": data}]}


@pytest.mark.parametrize("extra", [{}, {"id": "a"}, {"parameters": {"timeout": 5}}], ids=["plain", "id", "parameters"])
@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")], ids=["spaced", "tight"])
def test_a_form_that_was_read_is_known(extra, separators):
    known = RequestTemplates()
    assert known.parse(json.dumps(request([1.0, 2.5], **extra), separators=separators).encode()).form is None
    again = request([0.25, -3], **extra) | ({"id": "another"} if "id" in extra else {})
    found = known.parse(json.dumps(again, separators=separators).encode())
    assert found.form is not None
    np.testing.assert_array_equal(found.inputs["x"], np.array([0.25, -3], np.float32))
    assert found.id == again.get("id")
    assert found.parameters == extra.get("parameters", {})


def test_each_version_holds_a_form_against_its_own_contract():
    def taking(*shape):
        tensor = TensorContract(name="x", datatype="FP32", shape=shape)
        return Signature.of(FeatureContract(task="regression", inputs=(tensor,), outputs=(tensor,)))

    known, bodies = RequestTemplates(), [json.dumps(request([float(i)] * 6, [3, 2])).encode() for i in range(3)]
    wide, narrow = taking(-1, 2), taking(-1, 3)
    for body in bodies:
        assert wide.rows(known.parse(body)) == 3
        with pytest.raises(RequestInvalid, match="must be"):
            narrow.rows(known.parse(body))


def test_nested_data_has_a_form_too():
    known = RequestTemplates()
    known.parse(json.dumps(request([[1, 2], [3, 4]], [2, 2])).encode())
    found = known.parse(json.dumps(request([[5, 6], [7, 8]], [2, 2])).encode())
    assert (found.form is None, found.inputs["x"].tolist()) == (False, [[5, 6], [7, 8]])


def test_what_differs_with_every_request_teaches_nothing_for_ever():
    known = RequestTemplates(most=8, patience=200)
    for i in range(150):
        known.parse(json.dumps(request([1.0], parameters={"timeout": i})).encode())
    assert len(known) == 8
    for i in range(100):
        known.parse(json.dumps(request([1.0], parameters={"sticky": str(i)})).encode())
    known.parse(json.dumps(request([2.0], id="a")).encode())
    assert len(known) == 1
    assert known.parse(json.dumps(request([3.0], id="b")).encode()).form is not None


def test_a_cache_that_is_off_knows_nothing_and_says_the_same():
    off = RequestCaches.of(())
    for _ in range(2):
        found = off.templates.parse(json.dumps(request([1.0])).encode())
        assert (found.form, found.inputs["x"].tolist()) == (None, [1.0])
    off.heads.remember(GET, RequestHead(b"GET", b"/", {}, keep_alive=True))
    assert (off.heads.split(GET), len(off.heads), len(off.templates)) == (None, 0, 0)


@pytest.mark.parametrize(
    "twice",
    [
        '{"id":"a","inputs":[{"name":"x","shape":[0],"datatype":"FP32","data":%s,"data":[]}]}',
        '{"id":"a","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%s,"data":[0]}]}',
        '{"id":"b","id":"?","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%s}]}',
        '{"id":"b","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%s}],"id":"!"}',
    ],
)
def test_of_two_equal_keys_the_last_counts(twice):
    known = RequestTemplates()
    for data in ("[]", "[0]", "[2]", "[]"):
        for sent in (twice % data, (twice % data).replace('"a"', '"c"').replace('"b"', '"c"')):
            assert outcome(known.parse, sent.encode()) == outcome(parse_request, sent.encode(), None)


def test_a_large_body_teaches_nothing():
    known = RequestTemplates()
    known.parse(json.dumps(request([0.5] * 20_000)).encode())
    assert len(known) == 0


values = st.floats(width=32) | st.integers(-5, 300) | st.booleans() | st.none() | st.text(max_size=3)
lists = st.lists(values, max_size=3) | st.lists(st.lists(values, max_size=2), max_size=2) | values
ids = st.text(max_size=4) | st.sampled_from(['a"b', "c\\d", "é", "x" * 300]) | st.none() | st.integers() | lists
traps = st.sampled_from(['"data": [', '"data":[1],"x', 'x"data": ', '"id": "y"', "data", "id"])


@settings(max_examples=200)
@given(
    rounds=st.lists(st.tuples(lists, ids, lists), min_size=2, max_size=6),
    name=st.just("x") | traps,
    datatype=st.sampled_from(["FP32", "INT64", "BOOL", "BYTES"]),
    shape=st.lists(st.integers(0, 3), max_size=2),
    order=st.permutations(["id", "inputs", "parameters"]),
    trap=st.dictionaries(traps, lists | traps, max_size=2),
    separators=st.sampled_from([(", ", ": "), (",", ":"), (" , ", " : ")]),
    twice=st.booleans(),
)
def test_the_short_way_says_what_the_long_one_says(rounds, name, datatype, shape, order, trap, separators, twice):
    known = RequestTemplates()
    for data, request_id, more in rounds:
        tensor = {"name": name, "shape": shape, "datatype": datatype, "data": data}
        whole = {"id": request_id, "inputs": [tensor], "parameters": trap}
        if twice:
            whole["parameters"] = {**trap, "data": more}
        body = json.dumps({key: whole[key] for key in order}, separators=separators).encode()
        for sent in (body, body.replace(b'"data"', b'"data":[1],"data"', 1), body[:-1], body + b"]"):
            assert outcome(known.parse, sent) == outcome(parse_request, sent, None)


# ---- heads

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /p?q=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
OTHER_WAYS = [
    b"POST /p HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"POST /p HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /p HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /p HTTP/1.1\r\nX: %s\r\nContent-Length: 5\r\n\r\nhello" % (b"x" * 3000),
    b"\r\n\r\n" + POST + b"hello",
]


async def heard(*pieces, wait_s=0.0, limits=None):
    """What a server hears of these pieces on one connection: every request, then the server and what was answered."""
    requests = []

    def handler(exchange):
        requests.append((exchange.method, exchange.path, dict(exchange.headers), exchange.body, exchange.keep_alive))
        exchange.reply(200, b"{}")

    server = HttpServer(handler, limits)
    port = await server.listen_tcp("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(wait_s)
    writer.write_eof()
    answers = await reader.read()
    writer.close()
    await server.stop(grace_s=0)
    return requests, server, answers


def split_of(*pieces):
    """What the server would make of the last piece without asking the grammar, after it has heard the others."""
    _, server, _ = asyncio.run(heard(*pieces[:-1], wait_s=0.02))
    return server.heads.split(pieces[-1])


def test_a_head_that_was_read_is_known_and_says_the_same():
    for head, first, second in ((GET, b"", b""), (POST, b"hello", b"again")):
        request = split_of(head + first, head + second)
        assert request is not None
        known, body = request
        ((method, path, headers, _, _),) = asyncio.run(heard(head + first))[0]
        assert (known.method, known.path, known.headers, body) == (method, path, headers, second)


@pytest.mark.parametrize("other", OTHER_WAYS, ids=["close", "http10", "chunked", "expect", "long", "after empty lines"])
def test_a_head_that_says_more_than_where_the_body_ends_goes_to_the_grammar(other):
    assert split_of(other, other) is None


@pytest.mark.parametrize("rest", [b"hell", b"hello!", b"hello" + GET, b""], ids=["short", "long", "pipelined", "none"])
def test_what_is_not_exactly_one_request_goes_to_the_grammar(rest):
    assert split_of(POST + b"hello", POST + rest) is None


def test_empty_lines_before_a_request_teach_nothing():
    start = b"\r\n\r\nPOST /evil HTTP/1.1\r\nHost: x\r\nContent-Length: "
    length = len(start) - 4 + len(b"NN\r\n\r\n") + 5
    assert split_of(start + b"%d\r\n\r\nhello" % length, b"\r\n\r\n" + b"x" * length) is None


def test_known_heads_are_few_and_short():
    pieces = [b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(1100)]
    requests, server, _ = asyncio.run(heard(*pieces, limits=HttpLimits(pipelined=2000)))
    assert len(requests) == 1100
    assert 0 < len(server.heads) <= 512


starts = st.sampled_from([GET, POST + b"hello", POST + b"again", *OTHER_WAYS[2:4], OTHER_WAYS[5]])


@settings(max_examples=40)
@given(st.lists(starts, min_size=1, max_size=6), st.lists(st.integers(0, 600), max_size=4), st.booleans())
def test_however_requests_are_cut_the_server_hears_the_same(messages, cuts, last_one_closes):
    sent = [*messages, *([OTHER_WAYS[0]] if last_one_closes else [])]
    whole = b"".join(sent)
    current = sorted({0, len(whole), *(c % (len(whole) + 1) for c in cuts)})
    in_pieces = [whole[a:b] for a, b in pairwise(current)]
    one_by_one, cut = asyncio.run(heard(*sent, wait_s=0.001)), asyncio.run(heard(*in_pieces, wait_s=0.001))
    assert one_by_one[0] == cut[0] == [hearing for m in sent for hearing in asyncio.run(heard(m))[0]]
    assert one_by_one[2] == cut[2]

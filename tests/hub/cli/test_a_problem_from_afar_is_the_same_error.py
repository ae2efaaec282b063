import httpx
import pytest

from hub.api.problems import problem
from hub.client.http import HubClient
from model_formats.core.errors import HubError, RefusedError, SpokeshaveError, catalog


def client(answer):
    return HubClient(httpx.Client(transport=httpx.MockTransport(lambda _request: answer), base_url="https://hub"))


def received(answer):
    with pytest.raises(SpokeshaveError) as caught:
        client(answer).get("/x")
    return caught.value


def test_every_error_of_the_catalog_arrives_with_its_code_message_hint_and_exit():
    for code, kind in catalog().items():
        error = kind.__new__(kind)
        SpokeshaveError.__init__(error, "what and why", hint="what to do")
        document = problem(error)
        found = received(httpx.Response(document.status_code, content=document.body))
        assert (found.code, found.message, found.hint, found.exit) == (code, "what and why", "what to do", kind.exit)


def test_a_code_that_this_program_does_not_know_keeps_its_family():
    body = {"code": "from_the_future", "detail": "no", "hint": "update", "exit": 4}
    found = received(httpx.Response(403, json=body))
    assert isinstance(found, RefusedError)
    assert (found.code, found.hint) == ("from_the_future", "update")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"code": 1}'])
def test_anything_else_is_the_hubs_fault(body):
    assert type(received(httpx.Response(502, content=body))) is HubError

import base64

import httpx
import pytest

from hub.registry.auth import RegistryAuth
from hub.registry.errors import NotAuthorized, RegistryRefused
from hub.registry.push_pull import pull, push
from model_formats.package import ImageLayout
from tests.samples.model_folder import packed

USER = "Basic " + base64.b64encode(b"ml:secret").decode()


def basic(request, _repository, _action):
    if request.headers.get("Authorization") != USER:
        raise NotAuthorized("who are you?")


@pytest.mark.parametrize("password", ["secret", "wrong"])
def test_with_name_and_password(serve, store, tmp_path, password):
    layout, index = packed(tmp_path)
    url = serve(store, basic)
    with httpx.Client(auth=RegistryAuth("ml", password)) as client:
        if password == "wrong":
            with pytest.raises(RegistryRefused, match="401"):
                push(layout, index, url, client)
        else:
            push(layout, index, url, client)
            assert pull(ImageLayout(tmp_path / "copy"), url, client, "digits", "1") == index


def bearer(asked):
    """A transport that is a registry and its token service, for one answer each."""

    def handler(request):
        asked.append((request.url.path, request.url.params.get("scope"), request.headers.get("Authorization")))
        if request.url.path == "/token":
            return (
                httpx.Response(200, json={"token": "t0ken"}) if request.headers["Authorization"] == USER else httpx.Response(403)
            )
        if request.headers.get("Authorization") == "Bearer t0ken":
            return httpx.Response(200)
        challenge = 'Bearer realm="https://auth.example/token",service="registry",scope="repository:digits:pull"'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    return httpx.MockTransport(handler)


def test_with_a_token_for_the_scope_that_the_registry_names():
    asked = []
    with httpx.Client(auth=RegistryAuth("ml", "secret"), transport=bearer(asked)) as client:
        assert client.get("https://registry.example/v2/digits/manifests/1").status_code == 200
        assert client.get("https://registry.example/v2/digits/manifests/1").status_code == 200
    assert [path for path, _, _ in asked] == [
        "/v2/digits/manifests/1",
        "/token",
        "/v2/digits/manifests/1",
        "/v2/digits/manifests/1",
    ]
    assert asked[1] == ("/token", "repository:digits:pull", USER)


def test_a_wrong_password_is_told():
    with (
        httpx.Client(auth=RegistryAuth("ml", "wrong"), transport=bearer([])) as client,
        pytest.raises(NotAuthorized, match="403"),
    ):
        client.get("https://registry.example/v2/digits/manifests/1")


def test_the_password_is_not_sent_in_the_clear():
    def handler(_request):
        return httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="http://evil.example/token"'})

    client = httpx.Client(auth=RegistryAuth("ml", "secret"), transport=httpx.MockTransport(handler))
    with client, pytest.raises(NotAuthorized, match="sends the password"):
        client.get("https://registry.example/v2/")


def test_pulling_and_pushing_have_tokens_of_their_own_and_other_hosts_get_none():
    asked = []

    def handler(request):
        asked.append((request.method, request.url.host, request.headers.get("Authorization")))
        if request.url.path == "/token":
            return httpx.Response(200, json={"access_token": request.url.params["scope"]})
        scope = "pull" if request.method == "GET" else "pull,push"
        if request.url.host == "storage.example" or request.headers.get("Authorization") == f"Bearer {scope}":
            return httpx.Response(200)
        challenge = f'Bearer realm="https://auth.example/token",scope="{scope}"'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    auth = RegistryAuth("ml", "secret", host="registry.example")
    with httpx.Client(auth=auth, transport=httpx.MockTransport(handler)) as client:
        for _ in range(2):
            client.get("https://registry.example/v2/digits/blobs/1")
            client.post("https://registry.example/v2/digits/blobs/uploads/")
            client.put("https://storage.example/v2/digits/blobs/uploads/1")
    assert [host for _, host, _ in asked].count("auth.example") == 2
    assert {sent for _, host, sent in asked if host == "storage.example"} == {None}


def test_a_blob_is_streamed_also_where_one_is_logged_in():
    given = []

    def blob():
        for _ in range(100):
            given.append(1 << 20)
            yield bytes(1 << 20)

    auth = RegistryAuth("ml", "secret", host="registry.example")
    with (
        httpx.Client(auth=auth, transport=httpx.MockTransport(lambda _: httpx.Response(200, content=blob()))) as client,
        client.stream("GET", "https://registry.example/v2/digits/blobs/1") as answer,
    ):
        assert given == []
        next(answer.iter_bytes(1 << 20))
    assert sum(given) <= 2 << 20

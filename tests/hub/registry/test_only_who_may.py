import httpx

from hub.registry.errors import NotAuthorized
from hub.registry.routes import allow_nobody
from model_formats.core.types import digest_of


def test_without_a_rule_nobody_may_do_anything(serve, store):
    answer = httpx.get(f"{serve(store, allow_nobody)}/v2/")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"


def test_a_rule_sees_repository_and_action(serve, store):
    asked = []

    async def authorize(_request, repository, action):
        asked.append((repository, action))
        if action != "pull":
            raise NotAuthorized("read only")

    url = serve(store, authorize)
    assert httpx.get(f"{url}/v2/team/digits/blobs/{digest_of(b'')}").status_code == 404
    assert httpx.post(f"{url}/v2/team/digits/blobs/uploads/").status_code == 401
    assert httpx.delete(f"{url}/v2/team/digits/manifests/v1").status_code == 401
    assert asked == [("team/digits", "pull"), ("team/digits", "push"), ("team/digits", "delete")]


def test_a_blob_is_not_mounted_from_a_repository_one_may_not_read(serve, store):
    digest = store.put_blob("secret", b"weights")

    def authorize(_request, repository, _action):
        if repository == "secret":
            raise NotAuthorized("not yours")

    answer = httpx.post(f"{serve(store, authorize)}/v2/mine/blobs/uploads/", params={"mount": digest, "from": "secret"})
    assert answer.status_code == 202
    assert not store.holds("mine", digest)


def test_a_refused_push_leaves_no_upload(serve, store):
    httpx.post(f"{serve(store, allow_nobody)}/v2/x/blobs/uploads/")
    assert not list((store.folder / "uploads").iterdir())

"""One suite for the registry whose bytes lie in its folder, at another registry of ours, and at distribution 2.8."""

import os
import threading
import time
from contextlib import ExitStack, closing, contextmanager, nullcontext

import httpx
import pytest

from hub.config.settings import HubSettings, SettingsInvalid
from hub.registry.errors import NotAuthorized, Unknown
from hub.registry.garbage_collect import collect
from hub.registry.push_pull import RegistryDown, pull, push
from hub.registry.remote_backend import ExternalContents, ExternalRegistry, ExternalRegistryRefused, open_registry
from hub.registry.remote_client import RemoteRepository
from hub.registry.store import RegistryStore
from model_formats.core.types import digest_of
from model_formats.package import ImageLayout, attach, open_package
from model_formats.package.image_layout import PackageTampered
from model_formats.package.oci import OCTETS, SIGNATURE, Descriptor
from tests.samples.model_folder import packed
from tests.samples.registries import distribution, needs_distribution

BIG = os.urandom(3 << 20)


AWAY = ["ours", pytest.param("distribution", marks=needs_distribution)]


@pytest.fixture(params=["folder", *AWAY])
def kept(request, tmp_path, serve):
    """(a registry, the settings that made it)"""
    with _made(request.param, tmp_path, serve) as made:
        yield made


@pytest.fixture(params=AWAY)
def elsewhere(request, tmp_path, serve):
    """The same, where the bytes are at another registry."""
    with _made(request.param, tmp_path, serve) as made:
        yield made


@contextmanager
def _made(kind, folder, serve):
    with distribution(folder / "distribution") if kind == "distribution" else nullcontext({}) as told:
        if kind == "ours":
            told = {"registry_url": serve(RegistryStore(folder / "far"))}
        settings = HubSettings(**told)
        with closing(open_registry(folder / "near", settings)) as store:
            yield store, settings


@pytest.fixture
def opened(tmp_path):
    """`opened(settings)` -> a registry; `opened.at(settings)` -> the external one by itself. Closed at the end."""
    with ExitStack() as stack:

        def open_(settings):
            return stack.enter_context(closing(open_registry(tmp_path / "near", settings)))

        def at(settings):
            registry = ExternalRegistry.of(settings)
            stack.enter_context(registry.client)
            return registry

        open_.at = at
        yield open_


def forget_all(store):
    """As if the cache had been emptied."""
    for file in store.contents.folder.iterdir():
        file.unlink()


def pushed(tmp_path, url, **kwargs):
    layout, index = packed(tmp_path / "made", **kwargs)
    attach(layout, index, SIGNATURE, b"bundle")
    with httpx.Client() as client:
        push(layout, index, url, client)
    return layout, index


def test_a_version_that_is_pushed_to_the_hub_is_pulled_from_it_whole(kept, serve, tmp_path):
    store, settings = kept
    url = serve(store)
    layout, index = pushed(tmp_path, url)
    if settings.registry_url:
        forget_all(store)
    copy = ImageLayout(tmp_path / "copy")
    with httpx.Client() as client:
        assert pull(copy, url, client, "digits", "1") == index
        part = client.get(f"{url}/v2/digits/blobs/{digest_of(b'bundle')}", headers={"Range": "bytes=2-3"})
        assert (part.status_code, part.content) == (206, b"nd")
    for variant in ("onnx-int8", "onnx-fp32"):
        open_package(copy, index).check(variant)
    assert [r.digest for r in copy.referrers(index)] == sorted(r.digest for r in layout.referrers(index))


def test_a_blob_comes_back_by_its_digest_and_nobody_else_has_it(kept, tmp_path):
    store, _ = kept
    digest = store.put_blob("digits", BIG)
    assert store.has(digest)
    assert store.ready(digest)
    assert store.path(digest).read_bytes() == BIG
    assert store.confirmed_size("digits", digest) == len(BIG)
    assert not store.holds("other", digest)
    assert not store.has(digest_of(b"never"))
    with pytest.raises(Unknown):
        store.confirmed_size("digits", digest_of(b"never"))
    store.link("other", digest)
    assert store.holds("other", digest)


def test_any_tool_finds_version_and_signature_at_the_registry_itself(elsewhere, opened, serve, tmp_path):
    store, settings = elsewhere
    layout, index = pushed(tmp_path, serve(store))
    copy = ImageLayout(tmp_path / "copy")
    registry = opened.at(settings)
    assert pull(copy, registry.url, registry.client, "spokeshave/digits", "1") == index
    assert {r.digest for r in copy.referrers(index)} == {r.digest for r in layout.referrers(index)}
    assert copy.has(digest_of(b"bundle"))


def test_many_who_want_a_blob_cost_one_fetch(elsewhere, opened):
    store, settings = elsewhere
    digest = store.put_blob("digits", BIG)
    forget_all(store)
    asked = []
    again = opened(settings)
    again.contents._registry.client.event_hooks = {"request": [lambda r: asked.append(r.method)]}
    threads = [threading.Thread(target=again.path, args=(digest,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert again.path(digest).read_bytes() == BIG
    assert asked.count("GET") <= 2  # the second is the one that logs in


def test_a_full_cache_gives_up_what_was_not_wanted_for_longest_and_pages_last(elsewhere, opened):
    _, settings = elsewhere
    small = opened(settings.model_copy(update={"registry_cache_bytes": 7 << 20}))
    page = small.put_blob("digits", b"page")
    old, used, new = (small.put_blob("digits", os.urandom(3 << 20)) for _ in range(3))
    for digest, age in ((page, 4000), (used, 3500), (old, 3000), (new, 2500)):
        os.utime(small.contents.folder / digest[7:], (time.time() - age,) * 2)
    small.path(used)
    last = small.put_blob("digits", os.urandom(1 << 20))
    near = {f"sha256:{file.name}" for file in small.contents.folder.iterdir()}
    assert near == {page, used, last}  # `new` as well went: 3 + 3 + 1 MiB and a page are over 7
    assert small.path(old).stat().st_size == 3 << 20


def test_what_the_folder_held_before_the_setting_stays_and_is_never_given_up(elsewhere, opened, tmp_path):
    _, settings = elsewhere
    before = RegistryStore(tmp_path / "near").put_blob("digits", BIG)
    store = opened(settings.model_copy(update={"registry_cache_bytes": 0}))
    os.utime(store.contents.folder / before[7:], (1, 1))
    store.put_blob("digits", b"something")
    assert store.path(before).read_bytes() == BIG
    with pytest.raises(Unknown):  # so that publishing the version again brings it to the registry
        store.confirmed_size("digits", before)


def test_what_the_registry_lost_is_pushed_again(elsewhere, opened, serve):
    store, settings = elsewhere
    digest = store.put_blob("digits", BIG)
    registry = opened.at(settings)
    remote = registry.repository("digits")
    assert registry.client.delete(f"{remote._base}/blobs/{digest}").status_code == 202
    with pytest.raises(Unknown):
        store.confirmed_size("digits", digest)
    with httpx.Client() as client:
        assert client.head(f"{serve(store)}/v2/digits/blobs/{digest}").status_code == 404


def test_collecting_deletes_only_what_this_hub_pushed(elsewhere, opened, serve, tmp_path):
    store, settings = elsewhere
    layout, index = pushed(tmp_path, serve(store))
    registry = opened.at(settings)
    theirs, foreign = packed(tmp_path / "theirs", version=2)
    push(theirs, foreign, registry.url, registry.client, repository="spokeshave/digits")
    store.delete_manifest("digits", "1")
    done = collect(store, grace_s=-1)
    assert done.manifests == 2 + 1 + len(layout.referrers(index))
    remote = registry.repository("digits")
    assert remote.get_manifest(foreign)
    assert remote.referrers(index) == []
    with pytest.raises(Exception, match="404"):
        remote.get_manifest(index)
    assert not store.has(index)
    assert pull(ImageLayout(tmp_path / "copy"), registry.url, registry.client, "spokeshave/digits", "2") == foreign


def test_bytes_that_are_not_the_digest_are_never_kept(elsewhere, serve, tmp_path):
    store, _ = elsewhere
    digest = store.put_blob("digits", BIG)
    forget_all(store)
    with damaged(tmp_path, digest):
        with pytest.raises(PackageTampered, match=digest):
            store.path(digest)
        assert not list(store.contents.folder.iterdir())
        answer = httpx.get(f"{serve(store)}/v2/digits/blobs/{digest}")
        assert answer.status_code == 422 or answer.status_code >= 500
    assert store.path(digest).read_bytes() == BIG


@contextmanager
def damaged(folder, digest):
    """The file at the registry, with one byte changed."""
    (file,) = [
        f for f in folder.rglob("*") if f.is_file() and "near" not in f.parts and digest[7:] in str(f) and f.stat().st_size > 1000
    ]
    data = bytearray(BIG)
    data[12345] ^= 1
    file.write_bytes(data)
    yield
    file.write_bytes(BIG)


def test_a_registry_that_is_away_is_told_and_costs_nothing_that_is_near(opened, tmp_path):
    settings = HubSettings(registry_url="http://127.0.0.1:9")
    (tmp_path / "near" / "origins").mkdir(parents=True)
    digest = digest_of(b"far")
    (tmp_path / "near" / "origins" / digest[7:]).write_text('{"repository": "digits", "size": 3}')
    store = opened(settings)
    with pytest.raises(RegistryDown, match=r"127\.0\.0\.1:9"):
        store.put_blob("digits", b"new")
    assert not list(store.contents.folder.iterdir())
    with pytest.raises(RegistryDown, match=r"127\.0\.0\.1:9"):
        store.path(digest)


def test_a_password_that_the_registry_refuses_is_the_operators_business_not_the_spokes(serve, opened, tmp_path):
    def nobody(*_):
        raise NotAuthorized("who are you?")

    store = opened(HubSettings(registry_url=serve(RegistryStore(tmp_path / "far"), nobody)))
    with pytest.raises(ExternalRegistryRefused, match="401"):
        store.put_blob("digits", b"new")
    with httpx.Client() as client:
        where = client.post(f"{serve(store)}/v2/digits/blobs/uploads/", params={"digest": digest_of(b"new")}, content=b"new")
    assert where.status_code == 502
    assert "401" in where.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"registry_url": "registry.example.org"}, "no http or https"),
        ({"registry_url": "http://registry.example.org", "registry_user": "a", "registry_password": "b"}, "over https only"),
        ({"registry_url": "https://r.example.org", "registry_ca_file": "/nowhere.pem"}, "registry_ca_file"),
        ({"registry_url": "https://r.example.org", "registry_password_file": "/nowhere"}, "registry_password_file"),
    ],
)
def test_settings_that_cannot_work_are_named(told, why, tmp_path):
    with pytest.raises(SettingsInvalid, match=why):
        open_registry(tmp_path, HubSettings(**told))


def test_the_password_is_in_no_dump_of_the_settings():
    assert "hunter2" not in repr(HubSettings(registry_password="hunter2"))


def test_large_blobs_go_up_in_chunks_and_come_down_where_they_broke(elsewhere, opened, tmp_path):
    _, settings = elsewhere
    registry = opened.at(settings)
    registry = ExternalRegistry(registry.url, registry.prefix, registry.client, chunk=1 << 20)
    sent = []
    note = lambda r: sent.append((r.method, r.headers.get("Content-Range"), r.headers.get("Range")))  # noqa: E731
    registry.client.event_hooks = {"request": [note]}
    store = RegistryStore(tmp_path / "chunked", ExternalContents(tmp_path / "chunked", registry, cache_bytes=0))
    digest = store.put_blob("digits", BIG)
    assert [r for m, r, _ in sent if m == "PATCH"] == ["0-1048575", "1048576-2097151", "2097152-3145727"]
    forget_all(store)
    (tmp_path / "chunked" / "partial" / digest[7:]).write_bytes(BIG[:2_000_000])
    assert store.path(digest).read_bytes() == BIG
    assert sent[-1] == ("GET", None, "bytes=2000000-")


class CutOnce(httpx.HTTPTransport):
    """A line that breaks while the answer to the second chunk is on its way: the registry has the chunk, we do not know it."""

    chunks = 0

    def handle_request(self, request):
        answer = super().handle_request(request)
        if request.method == "PATCH":
            self.chunks += 1
            if self.chunks == 2:
                answer.close()
                raise httpx.ReadError("the line broke", request=request)
        return answer


def test_an_upload_whose_line_breaks_is_brought_to_its_end(elsewhere, opened, tmp_path):
    _, settings = elsewhere
    registry, line = opened.at(settings), CutOnce()
    with httpx.Client(auth=registry.client.auth, transport=line) as client:
        cut = ExternalRegistry(registry.url, registry.prefix, client, chunk=1 << 20)
        file = tmp_path / "big"
        file.write_bytes(BIG)
        blob = Descriptor(digest_of(BIG), len(BIG), OCTETS)
        cut.repository("digits").put_blob(file, blob)
    assert line.chunks >= 3
    registry.repository("digits").download(blob, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == BIG


def test_a_registry_that_loses_every_upload_is_given_up(tmp_path):
    lost = []

    def forgetful(request):
        if request.method == "PATCH":
            lost.append(request)
            raise httpx.ReadError("the line broke", request=request)
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": "/v2/x/blobs/uploads/1"})
        return httpx.Response(404)

    (tmp_path / "big").write_bytes(BIG)
    blob = Descriptor(digest_of(BIG), len(BIG), OCTETS)
    with httpx.Client(transport=httpx.MockTransport(forgetful)) as client:
        remote = RemoteRepository(client, "http://registry", "x", chunk=1 << 20)
        with pytest.raises(RegistryDown, match="line broke"):
            remote.put_blob(tmp_path / "big", blob)
    assert len(lost) <= 8

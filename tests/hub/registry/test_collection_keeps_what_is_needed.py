import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.registry.garbage_collect import collect
from hub.registry.push_pull import push
from hub.registry.store import RegistryStore
from model_formats.core.types import digest_of
from model_formats.package import SIGNATURE, attach, closure, open_package
from model_formats.package.oci import EMPTY_CONFIG, MANIFEST, canonical
from tests.samples.model_folder import packed


def pushed(tmp_path, serve, store):
    layout, index = packed(tmp_path)
    attach(layout, index, SIGNATURE, b"bundle")
    with httpx.Client() as client:
        push(layout, index, serve(store), client)
    return layout, index


def test_a_tagged_version_stays_with_its_referrers(tmp_path, serve, store):
    layout, index = pushed(tmp_path, serve, store)
    collect(store, grace_s=-1)
    assert all(store.holds("digits", blob.digest) for blob in closure(layout, index))
    assert len(store.referrers("digits", index)) == len(layout.referrers(index))
    assert store.has(digest_of(b"bundle"))


def test_an_untagged_version_goes_with_its_orphaned_referrers(tmp_path, serve, store):
    _, index = pushed(tmp_path, serve, store)
    store.delete_manifest("digits", "1")
    dry = collect(store, grace_s=-1, dry_run=True)
    assert store.has(index)
    done = collect(store, grace_s=-1)
    assert dry == done
    assert done.bytes > 900_000
    assert not list((store.folder / "blobs/sha256").iterdir())


def test_a_version_that_a_rollout_needs_stays_without_a_tag(tmp_path, serve, store):
    _, index = pushed(tmp_path, serve, store)
    store.delete_manifest("digits", "1")
    collect(store, keep=[index], grace_s=-1)
    open_package(store, index).check("onnx-int8")
    assert store.has(digest_of(b"bundle"))


def test_a_push_in_progress_is_left_alone(store):
    digest = store.put_blob("digits", b"not listed yet")
    collect(store, grace_s=3600)
    assert store.holds("digits", digest)


def test_a_blob_of_another_repository_stays(store):
    digest = store.put_blob("a", b"shared")
    config = store.put_blob("b", b"{}")
    store.link("b", digest)
    store.put_manifest("b", "v1", MANIFEST, manifest([digest], None))
    collect(store, grace_s=-1)
    assert store.holds("b", digest)
    assert not store.holds("a", digest)
    assert store.holds("b", config)


def manifest(layers, subject):
    page = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": EMPTY_CONFIG, "digest": digest_of(b"{}"), "size": 2},
        "layers": [{"mediaType": "x/y", "digest": d, "size": 6} for d in layers],
    }
    return canonical(page | ({"subject": {"mediaType": MANIFEST, "digest": subject, "size": 1}} if subject else {}))


@settings(max_examples=25)
@given(st.data())
def test_after_any_history_every_tag_can_be_pulled_and_nothing_else_is_left(tmp_path_factory, data):
    store = RegistryStore(tmp_path_factory.mktemp("registry"))
    store.put_blob("r", b"{}")
    blobs = [store.put_blob("r", f"blob-{i}".encode()) for i in range(4)]
    made = []
    for i in range(data.draw(st.integers(1, 6))):
        subject = data.draw(st.sampled_from([None, *made]))
        layers = data.draw(st.lists(st.sampled_from(blobs), unique=True, max_size=3))
        digest, _ = store.put_manifest("r", f"t{i}", MANIFEST, manifest(layers, subject))
        made.append(digest)
    for tag in data.draw(st.lists(st.sampled_from(store.tags("r")), unique=True)):
        store.delete_manifest("r", tag)
    collect(store, grace_s=-1)
    reachable = {store.manifest("r", tag).digest for tag in store.tags("r")}
    while more := {h.digest for d in reachable for h in store.referrers("r", d)} - reachable:
        reachable |= more
    assert set(store.manifests("r")) == reachable
    needed = {digest_of(b"{}")} if reachable else set()
    for digest in reachable:
        for blob in blobs:
            needed |= {blob} if blob in store.manifest("r", digest).data.decode() else set()
    left = {f"sha256:{p.name}" for p in (store.folder / "blobs/sha256").iterdir()}
    assert left == needed | reachable

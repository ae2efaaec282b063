import shutil
import subprocess

import httpx
import pytest

from hub.registry.push_pull import RegistryDown, pull, push
from model_formats.core.types import digest_of
from model_formats.package import SIGNATURE, ImageLayout, attach, open_package
from model_formats.signing.signature import KeySigner, sign_package
from tests.samples.model_folder import packed

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


@pytest.fixture
def url(serve, store):
    return serve(store)


def test_a_pushed_version_is_pulled_whole_with_its_signature(url, tmp_path):
    layout, index = packed(tmp_path)
    bundle = sign_package(layout, index, KeySigner.generate())
    attach(layout, index, SIGNATURE, bundle)
    copy = ImageLayout(tmp_path / "copy")
    with httpx.Client() as client:
        assert push(layout, index, url, client) == index
        assert pull(copy, url, client, "digits", "1") == index
    for variant in ("onnx-int8", "onnx-fp32"):
        open_package(copy, index).check(variant)
    assert copy.named("digits-1") == index
    assert len(copy.referrers(index)) == len(layout.referrers(index))
    assert copy.has(digest_of(bundle))


def test_a_second_push_sends_no_blob_again(url, tmp_path):
    layout, index = packed(tmp_path)
    sent = []
    hooks = {"request": [lambda r: sent.append((r.method, r.url.path))]}
    with httpx.Client(event_hooks=hooks) as client:
        push(layout, index, url, client)
        sent.clear()
        push(layout, index, url, client)
    assert not [path for method, path in sent if method == "POST"]


def test_a_damaged_blob_at_the_registry_is_not_kept(url, store, tmp_path):
    layout, index = packed(tmp_path)
    with httpx.Client() as client:
        push(layout, index, url, client)
        store.path(open_package(layout, index).files["variants/onnx-int8/model.onnx"].digest).write_bytes(b"x" * 300_000)
        copy = ImageLayout(tmp_path / "copy")
        with pytest.raises(Exception, match=r"model\.onnx"):
            pull(copy, url, client, "digits", "1")
    assert not copy.has(open_package(layout, index).files["variants/onnx-int8/model.onnx"].digest)


def test_a_registry_that_is_not_there_is_named(tmp_path):
    layout, index = packed(tmp_path)
    with httpx.Client() as client, pytest.raises(RegistryDown, match=r"127\.0\.0\.1:9"):
        push(layout, index, "http://127.0.0.1:9", client)


@needs_skopeo
def test_skopeo_copies_a_version_to_a_folder_and_back_with_the_same_digests(url, tmp_path, store):
    layout, index = packed(tmp_path)
    with httpx.Client() as client:
        push(layout, index, url, client)
        host = url.removeprefix("http://")
        skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{host}/digits:1", f"oci:{tmp_path / 'folder'}:digits-1")
        assert ImageLayout(tmp_path / "folder").named("digits-1") == index
        skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{tmp_path / 'folder'}:digits-1", f"docker://{host}/back:1")
        assert store.manifest("back", "1").digest == index
        pull(ImageLayout(tmp_path / "copy"), url, client, "back", "1")
    open_package(ImageLayout(tmp_path / "copy"), index).check("onnx-fp32")


@needs_skopeo
def test_skopeo_reads_the_layout_on_disk_and_pushes_it(url, tmp_path, store):
    layout, index = packed(tmp_path)
    host = url.removeprefix("http://")
    skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{layout.folder}:digits-1", f"docker://{host}/digits:1")
    assert store.manifest("digits", "1").digest == index


def skopeo(*args):
    done = subprocess.run(["skopeo", "--insecure-policy", *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

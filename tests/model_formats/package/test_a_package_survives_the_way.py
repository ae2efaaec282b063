import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from model_formats.core.types import digest_of
from model_formats.package import (
    BLOCK_BYTES,
    ImageLayout,
    PackageIncomplete,
    attach,
    block_hashes,
    closure,
    missing,
    open_package,
    pack,
    unpack,
)
from model_formats.package.write import TargetExists
from tests.samples.model_folder import WEIGHTS, packed, write_model_folder


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_unpacking_gives_back_the_folder(tmp_path):
    layout, index = packed(tmp_path)
    unpack(layout, index, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "source")


def test_the_same_folder_packs_to_the_same_digest(tmp_path):
    _, index = packed(tmp_path / "a")
    _, again = packed(tmp_path / "b")
    assert index == again


def test_an_opened_package_knows_its_pages_and_files(tmp_path):
    layout, index = packed(tmp_path)
    package = open_package(layout, index)
    assert (package.spec.model, package.spec.version) == ("digits", 1)
    assert package.contract.classes == tuple("0123456789")
    assert package.evidence.claim("onnx-int8") == 0.98
    assert package.path(WEIGHTS).read_bytes() == (tmp_path / "source" / WEIGHTS).read_bytes()
    package.check("onnx-int8")


def test_fetching_what_is_missing_step_by_step_completes_one_variant_and_no_other(tmp_path):
    source, index = packed(tmp_path / "hub")
    store, steps = ImageLayout(tmp_path / "spoke"), []
    while wanted := missing(store, index, source.path(index).stat().st_size, "onnx-int8"):
        steps.append([blob.path for blob in wanted])
        for blob in wanted:
            data = source.path(blob.digest).read_bytes()
            assert len(data) == blob.size
            store.put(data)
    assert steps[0] == [None]
    assert "blocks.json" in steps[2]
    assert steps[-1] == [WEIGHTS]
    open_package(store, index).check("onnx-int8")
    with pytest.raises(PackageIncomplete, match="onnx-fp32"):
        open_package(store, index).check("onnx-fp32")


def test_block_hashes_are_known_before_the_weights_arrive(tmp_path):
    source, index = packed(tmp_path / "hub")
    store, size = ImageLayout(tmp_path / "spoke"), source.path(index).stat().st_size
    target = open_package(source, index).files[WEIGHTS]
    assert block_hashes(store, index, target.digest) is None
    for _ in range(3):
        for blob in missing(store, index, size, "onnx-int8"):
            store.put(source.path(blob.digest).read_bytes())
    hashes = block_hashes(store, index, target.digest)
    data = source.path(target.digest).read_bytes()
    blocks = [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]
    assert [digest_of(b) for b in blocks] == ["sha256:" + h.hex() for h in hashes]


def test_two_versions_share_a_layout_and_keep_equal_files_once(tmp_path):
    pack(write_model_folder(tmp_path / "v1"), tmp_path / "layout")
    before = len(list((tmp_path / "layout/blobs/sha256").iterdir()))
    folder = write_model_folder(tmp_path / "v2", version=2)
    (folder / WEIGHTS).write_bytes((tmp_path / "v1" / WEIGHTS).read_bytes())
    index = pack(folder, tmp_path / "layout")
    layout = ImageLayout(tmp_path / "layout")
    assert layout.named("digits-2") == index
    assert layout.named("digits-1")
    assert len(list((tmp_path / "layout/blobs/sha256").iterdir())) - before < before


def test_referrers_hang_on_the_index(tmp_path):
    layout, index = packed(tmp_path)
    attach(layout, index, "application/vnd.example.report", b"{}", media_type="application/json")
    kinds = [json.loads(layout.path(d.digest).read_bytes())["artifactType"] for d in layout.referrers(index)]
    assert "application/vnd.example.report" in kinds
    assert "application/vnd.spokeshave.evidence.v1+json" in kinds
    assert len(layout.referrers(index, "application/vnd.example.report")) == 1


def test_the_closure_is_all_that_a_copy_needs(tmp_path):
    source, index = packed(tmp_path / "a")
    copy = ImageLayout(tmp_path / "b")
    for blob in closure(source, index):
        copy.put(source.path(blob.digest).read_bytes())
    for variant in ("onnx-int8", "onnx-fp32"):
        assert missing(copy, index, 1000, variant) == []
        open_package(copy, index).check(variant)


def test_unpacking_never_overwrites(tmp_path):
    layout, index = packed(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(TargetExists):
        unpack(layout, index, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_referrers_added_at_the_same_time_are_all_listed(tmp_path):
    layout, index = packed(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: attach(layout, index, "application/vnd.example.report", b"%d" % n), range(24)))
    assert len(layout.referrers(index, "application/vnd.example.report")) == 24

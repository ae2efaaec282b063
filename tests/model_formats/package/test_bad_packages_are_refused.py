"""Each attack rewrites one page of a good package; whoever did it also fixed every digest above it."""

import json

import pytest

from model_formats.core.errors import SpokeshaveError
from model_formats.core.types import digest_of
from model_formats.package import (
    ModelFolderInvalid,
    PackageIncomplete,
    PackageInvalid,
    PackageTampered,
    missing,
    open_package,
    pack,
    unpack,
)
from model_formats.package.oci import INDEX, Descriptor
from tests.samples.model_folder import WEIGHTS, packed, write_model_folder


def forge(layout, index, change):
    """A new index over the first manifest after `change(manifest)`."""
    page = json.loads(layout.path(index).read_bytes())
    manifests = [json.loads(layout.path(m["digest"]).read_bytes()) for m in page["manifests"]]
    change(page, manifests)
    for entry, manifest in zip(page["manifests"], manifests, strict=False):
        data = json.dumps(manifest).encode()
        entry |= {"digest": layout.put(data), "size": len(data)}
    return layout.put(json.dumps(page).encode())


def rename(layers, old, new):
    for layer in layers:
        if layer["annotations"]["org.cncf.model.filepath"] == old:
            layer["annotations"]["org.cncf.model.filepath"] = new


def path_of(name):
    return lambda _page, manifests: rename(manifests[0]["layers"], WEIGHTS, name)


ATTACKS = {
    "path above the folder": path_of("../../etc/passwd"),
    "absolute path": path_of("/etc/passwd"),
    "dots inside": path_of("variants/onnx-int8/../../x.onnx"),
    "hidden file": path_of("variants/onnx-int8/.bashrc"),
    "pickle": path_of("variants/onnx-int8/model.pkl"),
    "script": path_of("variants/onnx-int8/setup.py"),
    "unknown name": path_of("extra.json"),
    "another variant's folder": path_of("variants/onnx-fp32/other.onnx"),
    "no path": lambda _p, ms: ms[0]["layers"][0].pop("annotations"),
    "layer media type": lambda _p, ms: ms[0]["layers"][0].update(mediaType="application/zip"),
    "manifest is an image": lambda _p, ms: ms[0].update(artifactType="application/vnd.oci.image.config.v1+json"),
    "index of something else": lambda p, _ms: p.update(artifactType="application/vnd.example"),
    "index entry is no manifest": lambda p, _ms: p["manifests"][0].update(mediaType="application/json"),
    "no variant name": lambda p, _ms: p["manifests"][0].pop("annotations"),
    "same variant twice": lambda p, _ms: p["manifests"].append(p["manifests"][0]),
    "no manifests": lambda p, _ms: p["manifests"].clear(),
    "huge page": lambda _p, ms: ms[0]["layers"][0].update(size=1 << 39),
    "negative size": lambda _p, ms: ms[0]["layers"][0].update(size=-1),
    "short digest": lambda _p, ms: ms[0]["layers"][0].update(digest="sha256:00"),
    "other hash": lambda _p, ms: ms[0]["layers"][0].update(digest="md5:" + "0" * 32),
    "page missing in one manifest": lambda _p, ms: ms[0]["layers"].pop(0),
    "path twice": lambda _p, ms: ms[0]["layers"].append(ms[0]["layers"][0]),
    "manifests disagree": lambda _p, ms: ms[0]["layers"][0].update(size=1),
}


@pytest.mark.parametrize("change", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_forged_package_is_refused_and_writes_nothing(tmp_path, change):
    layout, index = packed(tmp_path)
    forged = forge(layout, index, change)
    with pytest.raises(PackageInvalid):
        missing(layout, forged, 1000)
    with pytest.raises(PackageInvalid):
        unpack(layout, forged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"source", "layout"}


def test_an_index_that_points_to_a_missing_manifest_asks_for_it(tmp_path):
    layout, index = packed(tmp_path)
    page = json.loads(layout.path(index).read_bytes())
    page["manifests"][0]["digest"] = "sha256:" + "0" * 64
    forged = layout.put(json.dumps(page).encode())
    assert [d.digest for d in missing(layout, forged, 1000)] == ["sha256:" + "0" * 64]
    with pytest.raises(PackageIncomplete):
        open_package(layout, forged)


def test_flipped_bits_are_found_in_every_blob(tmp_path):
    layout, index = packed(tmp_path)
    for file in sorted((layout.folder / "blobs/sha256").iterdir()):
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        try:
            package = open_package(layout, index)
            for variant in ("onnx-int8", "onnx-fp32"):
                package.check(variant)
        except PackageTampered:
            pass
        else:
            # Only what is no file of the package may pass here: configs, referrers.
            assert f"sha256:{file.name}" not in {d.digest for d in package.files.values()}
        file.write_bytes(good)


def test_a_truncated_file_is_refused_on_unpacking_and_leaves_nothing(tmp_path):
    layout, index = packed(tmp_path)
    path = open_package(layout, index).path(WEIGHTS)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PackageTampered, match=r"model\.onnx"):
        unpack(layout, index, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_huge_index_is_not_even_fetched(tmp_path):
    layout, _ = packed(tmp_path)
    with pytest.raises(PackageInvalid, match="bytes"):
        missing(layout, "sha256:" + "0" * 64, 1 << 30)


def test_an_index_that_is_really_a_large_blob_is_refused_unread(tmp_path):
    layout, _ = packed(tmp_path)
    big = layout.put(b" " * (5 << 20))
    with pytest.raises(SpokeshaveError, match="bytes"):
        open_package(layout, big)


def test_links_do_not_get_into_a_package(tmp_path):
    folder = write_model_folder(tmp_path / "source")
    (folder / "variants/onnx-int8/extra.onnx").symlink_to("/etc/passwd")
    with pytest.raises(ModelFolderInvalid, match="link"):
        pack(folder, tmp_path / "layout")
    assert not (tmp_path / "layout").exists()


def test_a_linked_folder_does_not_get_into_a_package(tmp_path):
    folder = write_model_folder(tmp_path / "source")
    (folder / "assets").symlink_to("/etc")
    with pytest.raises(ModelFolderInvalid, match="link"):
        pack(folder, tmp_path / "layout")


def test_a_file_that_no_variant_names_is_refused(tmp_path):
    folder = write_model_folder(tmp_path / "source")
    (folder / "variants/onnx-int8/extra.onnx").write_bytes(b"x")
    with pytest.raises(ModelFolderInvalid, match=r"extra\.onnx"):
        pack(folder, tmp_path / "layout")


def test_a_class_list_that_does_not_match_the_output_is_refused(tmp_path):
    folder = write_model_folder(tmp_path / "source")
    page = json.loads((folder / "contract.json").read_bytes())
    page["classes"] = page["classes"][:-1]
    (folder / "contract.json").write_text(json.dumps(page))
    with pytest.raises(ModelFolderInvalid, match="9 classes for an output of width 10"):
        pack(folder, tmp_path / "layout")


def test_a_damaged_page_is_named(tmp_path):
    folder = write_model_folder(tmp_path / "source")
    (folder / "package.json").write_text('{"kind": "package"}')
    with pytest.raises(ModelFolderInvalid, match="PackageSpec"):
        pack(folder, tmp_path / "layout")


def test_a_layout_lists_only_what_it_was_given(tmp_path):
    layout, index = packed(tmp_path)
    layout.name("digits-1", Descriptor(digest_of(b"x"), 1, INDEX))
    assert [d.annotations for d in layout.entries() if d.digest == index] == []

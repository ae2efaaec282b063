"""Writes a model folder as an OCI image layout, and back.

Packing is deterministic: the same folder gives the same digests on every machine.
"""

import contextlib
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_formats.core.errors import AuthorError, OperatorError, SpokeshaveError
from model_formats.core.files import atomic_write
from model_formats.core.types import digest_of
from model_formats.documents.evidence import Evidence
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import BLOCKS, CARD, CONTRACT, EVIDENCE, PROVENANCE, SPEC, PackageSpec, VariantSpec
from model_formats.package.allowed_files import is_variant_file, rule_of
from model_formats.package.block_hashes import BlockList
from model_formats.package.image_layout import BlobReader, ImageLayout, copy_checked
from model_formats.package.oci import (
    EMPTY_CONFIG,
    INDEX,
    MANIFEST,
    MODEL_CONFIG,
    MODEL_MANIFEST,
    Descriptor,
    canonical,
    descriptor_json,
    go_json,
)
from model_formats.package.read import VARIANT, Package, agree, open_package

__all__ = ["ModelFolderInvalid", "TargetExists", "attach", "attach_file", "pack", "unpack"]

PAGES = {
    EVIDENCE: "application/vnd.spokeshave.evidence.v1+json",
    CARD: "text/markdown",
    PROVENANCE: "application/vnd.in-toto+json",
}
"""Pages that also hang on the index as referrers, so that OCI tools find them without opening the package."""


class ModelFolderInvalid(AuthorError):
    """The folder cannot become a package."""

    code = "model_folder_invalid"
    hint = "Build the folder with `hub model build`, or bring it into the shape of docs/package.md."


class TargetExists(OperatorError):
    """The folder to unpack into is already there."""

    code = "unpack_target_exists"
    hint = "Give a new folder; nothing was overwritten."


def pack(folder: Path, layout: Path) -> str:
    """Pack a model folder (names in `package_spec.py`) into an OCI image layout; returns the digest of the version's index.

    Writes `blocks.json` into the folder first. A layout may hold many versions; equal files are kept once. The version is named
    `<model>-<version>` in the layout. Raises ModelFolderInvalid (links, strange names, pages that contradict the files).
    """
    try:
        spec = _spec(folder)
        atomic_write(folder / BLOCKS, BlockList.of(p for n, p in _walk(folder).items() if n != BLOCKS).canonical())
        sources = _walk(folder)
        Evidence.parse((folder / EVIDENCE).read_bytes())
        agree(spec, FeatureContract.parse((folder / CONTRACT).read_bytes()), set(sources))
    except ModelFolderInvalid:
        raise
    except (SpokeshaveError, OSError) as e:
        raise ModelFolderInvalid(f"{folder.name}: {e}") from e
    into = ImageLayout(layout)
    files = {name: _keep(into, name, path) for name, path in sources.items()}
    entries = [_put_variant(into, spec, variant, files) for variant in spec.variants]
    index = _put_index(into, spec, entries)
    _attach_pages(into, index, files)
    return index


def attach(
    layout: Path | ImageLayout,
    index: str,
    artifact_type: str,
    data: bytes,
    *,
    media_type: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> str:
    """Hang an artifact (a signature, a report) on a version; returns the digest of the referring manifest.

    The data's own digest is `digest_of(data)`; its media type is `artifact_type` unless told otherwise.
    """
    into = layout if isinstance(layout, ImageLayout) else ImageLayout(layout)
    blob = Descriptor(into.put(data), len(data), media_type or artifact_type)
    return _refer(into, index, artifact_type, blob, annotations or {})


def attach_file(
    layout: ImageLayout, index: str, artifact_type: str, source: Path, *, annotations: Mapping[str, str] | None = None
) -> Descriptor:
    """Like `attach`, for a file of any size; returns the data's descriptor."""
    digest, size = layout.put_file(source)
    blob = Descriptor(digest, size, artifact_type)
    _refer(layout, index, artifact_type, blob, annotations or {})
    return blob


def unpack(blobs: BlobReader, index: str, folder: Path) -> Package:
    """Write a version's files (all variants that are here) into a new folder, each checked. On an error no folder is left.

    Raises PackageIncomplete, PackageTampered, PackageInvalid, TargetExists.
    """
    package = open_package(blobs, index)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as e:
        raise TargetExists(f"{folder}: is there already") from e
    try:
        for name, blob in package.files.items():
            if is_variant_file(name) and not blobs.has(blob.digest):
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with package.path(name).open("rb") as source, target.open("xb") as out:
                copy_checked(source, out, blob)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        raise
    return package


def _spec(folder: Path) -> PackageSpec:
    if not (folder / SPEC).is_file():
        raise ModelFolderInvalid(f"{folder.name}: {SPEC} is missing")
    return PackageSpec.parse((folder / SPEC).read_bytes())


def _walk(folder: Path) -> dict[str, Path]:
    """Every file of the folder by its package path; anything but plain files and folders is refused."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise ModelFolderInvalid(f"{name}: a link or special file; a package holds plain files only")
        rule = rule_of(name)
        if path.stat().st_size > rule.max_bytes:
            raise ModelFolderInvalid(f"{name}: {path.stat().st_size} bytes, more than the {rule.max_bytes} allowed")
        found[name] = path
    return found


def _keep(into: ImageLayout, name: str, path: Path) -> Descriptor:
    digest, size = into.put_file(path)
    return Descriptor(digest, size, rule_of(name).media_type, name)


def _put_variant(into: ImageLayout, spec: PackageSpec, variant: VariantSpec, files: Mapping[str, Descriptor]) -> dict[str, Any]:
    own = [d for name, d in files.items() if not is_variant_file(name) or is_variant_file(name, variant.name)]
    config = canonical(_config(spec, variant, own))
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": MODEL_MANIFEST,
            "config": descriptor_json(Descriptor(into.put(config), len(config), MODEL_CONFIG)),
            "layers": [descriptor_json(d) for d in own],
        }
    )
    notes = {"dev.spokeshave.format": variant.format, "dev.spokeshave.precision": variant.precision, VARIANT: variant.name}
    blob = Descriptor(into.put(manifest), len(manifest), MANIFEST)
    return descriptor_json(blob, annotations=notes)


def _config(spec: PackageSpec, variant: VariantSpec, files: list[Descriptor]) -> dict[str, Any]:
    """ModelPack's own config, so that its tools can show what this is."""
    return {
        "descriptor": {
            "createdAt": spec.created.isoformat().replace("+00:00", "Z"),
            "name": spec.model,
            "version": str(spec.version),
            "title": spec.title,
            "licenses": [spec.licence],
        },
        "config": {"format": variant.format, "precision": variant.precision},
        "modelfs": {"type": "layers", "diffIds": [d.digest for d in files]},
    }


def _put_index(into: ImageLayout, spec: PackageSpec, entries: list[dict[str, Any]]) -> str:
    """No artifactType here (the manifests have it), and keys in Go's order: skopeo 1.9 drops the one and re-writes the other."""
    notes = {
        "org.opencontainers.image.licenses": spec.licence,
        "org.opencontainers.image.title": f"{spec.model}@{spec.version}",
    }
    data = go_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries, "annotations": notes})
    into.name(f"{spec.model}-{spec.version}", Descriptor(into.put(data), len(data), INDEX), artifact_type=MODEL_MANIFEST)
    return digest_of(data)


def _attach_pages(into: ImageLayout, index: str, files: Mapping[str, Descriptor]) -> None:
    for name, kind in PAGES.items():
        if name in files:
            _refer(
                into,
                index,
                kind,
                Descriptor(files[name].digest, files[name].size, kind),
                {"org.opencontainers.image.title": name},
            )


def _refer(into: ImageLayout, index: str, artifact_type: str, blob: Descriptor, annotations: Mapping[str, str]) -> str:
    subject = Descriptor(index, into.path(index).stat().st_size, INDEX)
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": descriptor_json(Descriptor(into.put(b"{}"), 2, EMPTY_CONFIG)),
            "layers": [descriptor_json(blob)],
            "subject": descriptor_json(subject),
            **({"annotations": dict(annotations)} if annotations else {}),
        }
    )
    digest = into.put(manifest)
    into.add(Descriptor(digest, len(manifest), MANIFEST), artifact_type=artifact_type)
    return digest

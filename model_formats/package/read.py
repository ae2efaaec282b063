"""Reads a package from blobs: lists what is still missing, and checks the whole. No name, size or type is trusted.

A package is pinned by the digest of its index. Under it, step by step: the index lists one manifest per variant; every manifest
lists the same common files and the files of its own variant; `package.json` must tell the same story as the manifests.
"""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from model_formats.core.document import DocumentRefused
from model_formats.core.types import digest_of_file
from model_formats.documents.evidence import Evidence
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import (
    ANCHORS,
    BLOCKS,
    CONTRACT,
    EVIDENCE,
    GOLDEN,
    PROFILE,
    SPEC,
    PackageSpec,
    VariantSpec,
)
from model_formats.package.allowed_files import COMMON, is_variant_file, require_common, rule_of
from model_formats.package.block_hashes import BlockList
from model_formats.package.image_layout import BlobReader, PackageIncomplete, PackageTampered, read_blob
from model_formats.package.oci import (
    FILEPATH,
    INDEX,
    MANIFEST,
    MAX_JSON,
    MODEL_CONFIG,
    MODEL_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    PackageInvalid,
    parse_index,
    parse_manifest,
)

if TYPE_CHECKING:
    from model_formats.core.runtime import Array
    from model_formats.package.golden import Golden
    from model_formats.statistics.reference_profile import ReferenceProfile

__all__ = ["Package", "block_hashes", "closure", "missing", "open_package"]

MAX_VARIANTS = 16
MAX_FILES = 256
MAX_CONFIG = 1 << 20
VARIANT = "dev.spokeshave.variant"
"""Annotation of a manifest in the index: the variant's name."""


class Package(Struct, frozen=True):
    """An opened version: its pages parsed and checked against each other. Weights may still be missing; `check` proves them."""

    blobs: BlobReader
    index: str
    spec: PackageSpec
    contract: FeatureContract
    evidence: Evidence
    blocks: BlockList
    files: Mapping[str, Descriptor]
    """Every file of every variant, by its path in the package folder. This is what the publisher's signature covers."""
    manifests: Mapping[str, str]
    """Variant -> digest of its manifest."""

    def path(self, name: str) -> Path:
        """The file's place in the store (its name there is its digest). Raises PackageIncomplete."""
        if name not in self.files:
            raise PackageIncomplete(f"{self.spec.model}@{self.spec.version}: has no file {name}")
        if not self.blobs.has(self.files[name].digest):
            raise PackageIncomplete(f"{name}: {self.files[name].digest} is not here")
        return self.blobs.path(self.files[name].digest)

    def variant(self, name: str) -> VariantSpec:
        """One variant's page. Raises PackageInvalid when there is none of that name."""
        for found in self.spec.variants:
            if found.name == name:
                return found
        raise PackageInvalid(f"{self.spec.model}@{self.spec.version}: has no variant {name!r}")

    @property
    def profile(self) -> "ReferenceProfile":
        """The reference profile (read on use: it needs NumPy)."""
        from model_formats.statistics.reference_profile import ReferenceProfile

        return ReferenceProfile.parse(read_blob(self.blobs, self._digest(PROFILE), limit=COMMON[PROFILE].max_bytes, name=PROFILE))

    def golden(self) -> "Golden":
        """Golden vectors: inputs, expected outputs, tolerance."""
        from model_formats.package.golden import read_golden

        return read_golden(self.path(GOLDEN))

    def anchors(self) -> "dict[str, Array]":
        """Anchor rows and the hub's head, for tuning at a site: `features`, `labels`, `weight`, `bias`."""
        from model_formats.core.array_file import read_arrays

        return read_arrays(self.path(ANCHORS), max_bytes=COMMON[ANCHORS].max_bytes)

    def block_hashes(self, digest: str) -> list[bytes] | None:
        """SHA-256 of each 128 KiB block of a file of this package; None where the file is one block."""
        return self.blocks.hashes(digest)

    def check(self, variant: str) -> None:
        """Hash the variant's files and all common files again. Raises PackageIncomplete or PackageTampered, naming the file."""
        self.variant(variant)
        for name, blob in self.files.items():
            if is_variant_file(name) and not is_variant_file(name, variant):
                continue
            if self.path(name).stat().st_size != blob.size or digest_of_file(self.path(name)) != blob.digest:
                raise PackageTampered(f"{name}: its bytes are not {blob.digest}")

    def _digest(self, name: str) -> str:
        self.path(name)
        return self.files[name].digest


def missing(blobs: BlobReader, index: str, index_size: int, variant: str | None = None) -> list[Descriptor]:
    """What to fetch next; call again when it is here, until the list is empty.

    In order: the index; the manifests; `package.json`, the block list and the small configs; the other common files; with
    `variant`, its files. Sizes are checked before anything is fetched. Raises PackageInvalid, PackageTampered.
    """
    # The size comes from signed metadata, but a parser of JSON still needs a bound.
    if index_size > MAX_JSON:
        raise PackageInvalid(f"index: {index_size} bytes, more than the {MAX_JSON} allowed")
    if not blobs.has(index):
        return [Descriptor(index, index_size, INDEX)]
    listed = _variants(blobs, index)
    if wanted := _absent(blobs, (Descriptor(d.digest, d.size, MANIFEST) for d in listed.values())):
        return wanted
    manifests = {name: _manifest(blobs, name, d.digest) for name, d in listed.items()}
    files = _files(manifests)
    configs = [m.config.plain for m in manifests.values()]
    # The specification decides which variant is wanted, and the block list lets every later block be checked on arrival.
    early = [files[name] for name in (SPEC, BLOCKS)]
    common = [blob for name, blob in files.items() if not is_variant_file(name)]
    if variant is not None and variant not in manifests:
        raise PackageInvalid(f"index: has no variant {variant!r}")
    own = [blob for name, blob in files.items() if variant and is_variant_file(name, variant)]
    # In stages: later stages are known only from the files of the earlier ones.
    return _absent(blobs, [*configs, *early]) or _absent(blobs, common) or _absent(blobs, own)


def block_hashes(blobs: BlobReader, index: str, digest: str) -> list[bytes] | None:
    """Block hashes of a blob while the package is still incomplete; None as long as they are not known."""
    if not blobs.has(index):
        return None
    listed = _variants(blobs, index)
    if not all(blobs.has(d.digest) for d in listed.values()):
        return None
    files = _files({name: _manifest(blobs, name, d.digest) for name, d in listed.items()})
    if not blobs.has(files[BLOCKS].digest):
        return None
    return BlockList.parse(read_blob(blobs, files[BLOCKS].digest, limit=COMMON[BLOCKS].max_bytes, name=BLOCKS)).hashes(digest)


def open_package(blobs: BlobReader, index: str) -> Package:
    """Open a version whose common files are here. Raises PackageIncomplete, PackageTampered, PackageInvalid."""
    listed = _variants(blobs, index)
    manifests = {name: _manifest(blobs, name, d.digest) for name, d in listed.items()}
    files = _files(manifests)
    pages = {name: read_blob(blobs, files[name].digest, limit=COMMON[name].max_bytes, name=name) for name in _PAGES}
    try:
        package = Package(
            blobs,
            index,
            PackageSpec.parse(pages[SPEC]),
            FeatureContract.parse(pages[CONTRACT]),
            Evidence.parse(pages[EVIDENCE]),
            BlockList.parse(pages[BLOCKS]),
            files,
            {name: d.digest for name, d in listed.items()},
        )
    except DocumentRefused as e:
        raise PackageInvalid(f"{index}: {e.message}") from e
    agree(package.spec, package.contract, set(files))
    return package


def closure(blobs: BlobReader, index: str) -> list[Descriptor]:
    """Every blob of a version, index first: what a complete copy has to hold (referrers are extra)."""
    listed = _variants(blobs, index)
    manifests = {name: _manifest(blobs, name, d.digest) for name, d in listed.items()}
    found = [Descriptor(index, blobs.path(index).stat().st_size, INDEX)]
    found += [Descriptor(d.digest, d.size, MANIFEST) for d in listed.values()]
    found += [m.config.plain for m in manifests.values()]
    return list({d.digest: d for d in [*found, *_files(manifests).values()]}.values())


def agree(spec: PackageSpec, contract: FeatureContract, paths: set[str]) -> None:
    """Refuse a package whose pages contradict each other or its files. Raises PackageInvalid."""
    require_common(paths)
    for variant in spec.variants:
        held = {p for p in paths if is_variant_file(p, variant.name)}
        if set(variant.files) != held:
            odd = sorted(set(variant.files) ^ held)
            raise PackageInvalid(f"{SPEC}: variant {variant.name} and its folder differ in {', '.join(odd[:5])}")
        if variant.main not in held:
            raise PackageInvalid(f"{SPEC}: main file {variant.main} is not among the files of {variant.name}")
    strangers = {p for p in paths if is_variant_file(p)} - {f for v in spec.variants for f in v.files}
    if strangers:
        raise PackageInvalid(f"{SPEC}: {sorted(strangers)[0]} belongs to no variant")
    _agree_classes(contract)


_PAGES = (SPEC, CONTRACT, EVIDENCE, BLOCKS)


def _agree_classes(contract: FeatureContract) -> None:
    if contract.classes is None or not contract.outputs:
        return
    width = contract.outputs[0].shape[-1] if contract.outputs[0].shape else -1
    if width not in (-1, len(contract.classes)):
        raise PackageInvalid(f"{CONTRACT}: {len(contract.classes)} classes for an output of width {width}")


def _variants(blobs: BlobReader, index: str) -> dict[str, Descriptor]:
    listed = parse_index(read_blob(blobs, index, name="index"))
    _check_index(listed)
    found = {m.annotations.get(VARIANT, ""): Descriptor(m.digest, m.size, m.media_type) for m in listed.manifests}
    if "" in found or len(found) != len(listed.manifests):
        raise PackageInvalid(f"index: every manifest needs its own {VARIANT} annotation")
    return found


def _check_index(index: Index) -> None:
    if index.artifact_type not in (None, MODEL_MANIFEST):
        raise PackageInvalid(f"index: artifactType is {index.artifact_type}, not {MODEL_MANIFEST}")
    if not 1 <= len(index.manifests) <= MAX_VARIANTS:
        raise PackageInvalid(f"index: {len(index.manifests)} manifests, allowed are 1 to {MAX_VARIANTS}")
    for entry in index.manifests:
        if entry.media_type != MANIFEST or entry.size > MAX_JSON:
            raise PackageInvalid(f"index: {entry.digest} is {entry.media_type} of {entry.size} bytes, not a manifest")


def _manifest(blobs: BlobReader, variant: str, digest: str) -> Manifest:
    found = parse_manifest(read_blob(blobs, digest, name=f"manifest of {variant}"))
    if found.artifact_type != MODEL_MANIFEST or found.config.media_type != MODEL_CONFIG:
        raise PackageInvalid(f"manifest of {variant}: not a ModelPack manifest (artifactType {found.artifact_type})")
    if found.config.size > MAX_CONFIG or len(found.layers) > MAX_FILES:
        raise PackageInvalid(f"manifest of {variant}: config of {found.config.size} bytes, {len(found.layers)} layers; too large")
    return found


def _files(manifests: Mapping[str, Manifest]) -> dict[str, Descriptor]:
    """All files by path. Common files come first and must be the same in every manifest."""
    found: dict[str, Descriptor] = {}
    for variant, manifest in manifests.items():
        own = [_layer(variant, layer.plain) for layer in manifest.layers]
        if len({d.path for d in own}) != len(own):
            raise PackageInvalid(f"manifest of {variant}: a path occurs twice")
        for blob in own:
            path = str(blob.path)
            if found.setdefault(path, blob) != blob:
                raise PackageInvalid(f"{path}: the manifests disagree about it")
    commons = [{d.annotations.get(FILEPATH, "") for d in m.layers} - _variant_paths(m) for m in manifests.values()]
    if any(a != b for a, b in itertools.pairwise(commons)):
        raise PackageInvalid("index: the manifests list different common files")
    require_common(set(found))
    order = {name: i for i, name in enumerate(COMMON)}
    return dict(sorted(found.items(), key=lambda item: (is_variant_file(item[0]), order.get(item[0], 99), item[0])))


def _variant_paths(manifest: Manifest) -> set[str]:
    return {path for d in manifest.layers if is_variant_file(path := d.annotations.get(FILEPATH, ""))}


def _layer(variant: str, blob: Descriptor) -> Descriptor:
    if blob.path is None:
        raise PackageInvalid(f"manifest of {variant}: a layer without a file path ({blob.digest})")
    rule = rule_of(blob.path)
    if is_variant_file(blob.path) and not is_variant_file(blob.path, variant):
        raise PackageInvalid(f"manifest of {variant}: {blob.path} belongs to another variant")
    if blob.media_type != rule.media_type:
        raise PackageInvalid(f"{blob.path}: media type is {blob.media_type}, not {rule.media_type}")
    if blob.size > rule.max_bytes:
        raise PackageInvalid(f"{blob.path}: {blob.size} bytes, more than the {rule.max_bytes} allowed")
    return blob


def _absent(blobs: BlobReader, wanted: Iterable[Descriptor]) -> list[Descriptor]:
    return list({d.digest: d for d in wanted if not blobs.has(d.digest)}.values())

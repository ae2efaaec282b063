"""Which files a package may hold: an allow-list of names, kinds and sizes. What is not named here cannot be in a package."""

import re
from pathlib import PurePosixPath

from msgspec import Struct

from model_formats.documents.package_spec import ANCHORS, BLOCKS, CARD, CONTRACT, EVIDENCE, GOLDEN, PROFILE, PROVENANCE, SPEC
from model_formats.package.oci import PackageInvalid

__all__ = ["COMMON", "FileRule", "is_variant_file", "rule_of"]

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_PATH = re.compile(rf"{_PART}(/{_PART}){{0,4}}")
MIB = 1 << 20


class FileRule(Struct, frozen=True):
    """What a file is in the words of ModelPack, and its largest size in bytes."""

    media_type: str
    max_bytes: int


def _model_pack(kind: str, max_bytes: int) -> FileRule:
    return FileRule(f"application/vnd.cncf.model.{kind}.v1.raw", max_bytes)


COMMON = {
    SPEC: _model_pack("weight.config", MIB),
    BLOCKS: _model_pack("weight.config", 32 * MIB),
    CONTRACT: _model_pack("weight.config", 4 * MIB),
    EVIDENCE: _model_pack("doc", 4 * MIB),
    PROFILE: _model_pack("weight.config", 64 * MIB),
    GOLDEN: _model_pack("dataset", 256 * MIB),
    ANCHORS: _model_pack("dataset", 256 * MIB),
    CARD: _model_pack("doc", MIB),
    PROVENANCE: _model_pack("doc", 4 * MIB),
    "LICENSE": _model_pack("doc", MIB),
}
"""The files beside the variants, in the order a spoke fetches them: the block list early, so that the rest can be checked."""

_REQUIRED = (SPEC, BLOCKS, CONTRACT, EVIDENCE)
_ASSET = _model_pack("weight.config", 256 * MIB)
_ASSET_KINDS = {".json", ".txt", ".csv", ".md", ".npz", ".model", ".vocab"}
_WEIGHT = _model_pack("weight", 1 << 40)
_WEIGHT_KINDS = {".onnx", ".xml", ".bin", ".data", *_ASSET_KINDS}


def rule_of(path: str) -> FileRule:
    """The rule for a file of a package. Raises PackageInvalid for names that a package may not hold.

    Beside the common files there are `assets/...` (tokenizer, label map: JSON, text, npz) and `variants/<name>/...`. Pickles and
    scripts have no place: a package is data.
    """
    if not _PATH.fullmatch(path) or ".." in path:
        raise PackageInvalid(f"{path!r}: not a path that a package may hold")
    if path in COMMON:
        return COMMON[path]
    top, _, rest = path.partition("/")
    kind = PurePosixPath(path).suffix.lower()
    if top == "assets" and rest and kind in _ASSET_KINDS:
        return _ASSET
    if top == "variants" and "/" in rest and kind in _WEIGHT_KINDS:
        return _WEIGHT
    raise PackageInvalid(f"{path}: not a file that a package may hold (pickles, scripts and unknown names are refused)")


def is_variant_file(path: str, variant: str | None = None) -> bool:
    """Whether a file belongs to a variant (to this one)."""
    return path.startswith(f"variants/{variant}/" if variant else "variants/")


def require_common(paths: set[str]) -> None:
    """Refuse a package without one of the pages that every package has."""
    for name in _REQUIRED:
        if name not in paths:
            raise PackageInvalid(f"{name}: missing in the package")

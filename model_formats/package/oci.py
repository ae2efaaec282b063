"""The OCI structures of a package: descriptor, manifest and index, with their media types.

Sources: OCI image specification 1.1 (manifest, index, image layout), CNCF ModelPack specification (model artifact types).
Parsing is bounded and checks every digest, size and media type; unknown fields are ignored, as OCI requires.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

import rfc8785
from msgspec import Meta, Struct, field

from model_formats.core.errors import RefusedError
from model_formats.core.types import Digest
from model_formats.core.validation import decoded

__all__ = [
    "EMPTY_CONFIG",
    "FILEPATH",
    "INDEX",
    "MANIFEST",
    "MODEL_CONFIG",
    "MODEL_MANIFEST",
    "OCTETS",
    "SIGNATURE",
    "Descriptor",
    "Index",
    "Manifest",
    "PackageInvalid",
    "parse_index",
    "parse_manifest",
]

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
OCTETS = "application/octet-stream"
MODEL_MANIFEST = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
FILEPATH = "org.cncf.model.filepath"
"""Layer annotation: where in the package folder the file lies."""
SIGNATURE = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""Artifact type and media type of a Model Signing bundle that refers to an index."""

T = TypeVar("T", bound="_Oci")

MAX_JSON = 4 << 20
"""Largest manifest or index that is read, bytes (the registry's own limit as well)."""

Size = Annotated[int, Meta(ge=0, le=1 << 40)]


class PackageInvalid(RefusedError):
    """It is not a package of ours: a wrong media type, name, size, or pages that contradict each other."""

    code = "package_invalid"
    http = 422
    hint = "The package was not built by `hub model build`; its author must build and publish it again."


class Descriptor(Struct, frozen=True):
    """What OCI calls a descriptor: a blob by digest, size in bytes and media type; `path` is its name in the package, if any."""

    digest: str
    size: int
    media_type: str
    path: str | None = None


class _Oci(Struct, frozen=True, kw_only=True, rename="camel"):
    """As it stands in JSON; what others may add is ignored."""


class OciDescriptor(_Oci, frozen=True, kw_only=True):
    """A descriptor as it stands in JSON."""

    media_type: str
    digest: Digest
    size: Size
    artifact_type: str | None = None
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> Descriptor:
        """The value that the rest of the program uses."""
        return Descriptor(self.digest, self.size, self.media_type, self.annotations.get(FILEPATH))


class Manifest(_Oci, frozen=True, kw_only=True):
    """An image manifest (image specification 1.1, manifest.md)."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = "application/vnd.oci.image.manifest.v1+json"
    artifact_type: str | None = None
    config: OciDescriptor
    layers: tuple[OciDescriptor, ...]
    subject: OciDescriptor | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    manifests: None = None
    """Must not be there: a page that is manifest and index at once means different things to different tools."""


class Index(_Oci, frozen=True, kw_only=True):
    """An image index (image specification 1.1, image-index.md)."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.index.v1+json"] = "application/vnd.oci.image.index.v1+json"
    artifact_type: str | None = None
    manifests: tuple[OciDescriptor, ...]
    subject: OciDescriptor | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    layers: None = None
    """Must not be there."""


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises PackageInvalid that names the field and the rule."""
    return _parse(Manifest, data)


def parse_index(data: bytes) -> Index:
    """Read an index. Raises PackageInvalid that names the field and the rule."""
    return _parse(Index, data)


def descriptor_json(
    blob: Descriptor, *, artifact_type: str | None = None, annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    """A descriptor for a manifest or index."""
    notes = {**({FILEPATH: blob.path} if blob.path else {}), **(annotations or {})}
    found: dict[str, Any] = {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}
    if artifact_type:
        found["artifactType"] = artifact_type
    if notes:
        found["annotations"] = notes
    return found


def canonical(value: dict[str, Any]) -> bytes:
    """One byte form, so that packing the same files twice gives the same digest."""
    return rfc8785.dumps(value)


def go_json(value: dict[str, Any]) -> bytes:
    """JSON as Go's encoder writes it (keys as given). Older skopeo re-writes an index; written so, it gets the same bytes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()


def _parse(cls: type[T], data: bytes) -> T:
    name = cls.__name__.lower()
    if len(data) > MAX_JSON:
        raise PackageInvalid(f"{name}: {len(data)} bytes, more than the {MAX_JSON} allowed")
    try:
        return decoded(data, cls)
    except ValueError as e:
        raise PackageInvalid(f"{name}: {e}") from e

"""Refusals of the registry, in the words of OCI distribution 1.1 (`errors[].code`).

RegistryRefused         4xx     `oci` is the code that clients expect
├── Unknown             404     no such repository, manifest, blob or upload
├── Unacceptable        400     a digest, name or manifest that is wrong
├── OutOfOrder          416     a chunk that does not follow the last
└── NotAuthorized       401     raised by the hub's authorize hook
"""

from typing import ClassVar

from model_formats.core.errors import RefusedError

__all__ = ["NotAuthorized", "OutOfOrder", "RegistryRefused", "Unacceptable", "Unknown"]


class RegistryRefused(RefusedError):
    """The registry said no. `oci` is the error code of the distribution specification."""

    code = "registry_refused"
    http = 400
    oci_default: ClassVar[str] = "UNSUPPORTED"
    hint = "Check name, digest and order of the push."

    def __init__(self, message: str, *, oci: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.oci = oci or self.oci_default


class Unknown(RegistryRefused):
    """It is not here."""

    code = "registry_unknown"
    http = 404
    oci_default = "NAME_UNKNOWN"
    hint = "Push it first, or check the name and the digest."


class Unacceptable(RegistryRefused):
    """It breaks a rule of the format."""

    code = "registry_unacceptable"
    oci_default = "MANIFEST_INVALID"


class OutOfOrder(RegistryRefused):
    """A chunk does not start where the upload stands. `offset` is where it stands."""

    code = "registry_out_of_order"
    http = 416
    oci_default = "BLOB_UPLOAD_INVALID"

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class NotAuthorized(RegistryRefused):
    """The caller may not do this in this repository."""

    code = "registry_not_authorized"
    http = 401
    oci_default = "UNAUTHORIZED"
    hint = "Give a token that may pull (or push) here."

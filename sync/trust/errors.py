"""The refusals of the verifier. Each carries a `Reason` of the closed list, for reports and the journal.

RefusedError
└── TrustRefused            reason
    ├── EnvelopeRefused     a signed message that is not signed as it must be
    ├── MetadataRefused     TUF metadata: signature, version, expiry, shape
    ├── DirectiveRefused    a directive of the hub
    ├── ReleaseRefused      a version that may not run here, or not now
    ├── ContentsRefused     the bytes of a package
    ├── ReportRefused       a report of a spoke
    └── BundleRefused       a sideload file (sync.sideload.bundle)
"""

from model_formats.core.errors import HubError, OperatorError, RefusedError
from sync.core.types import Reason

__all__ = [
    "ContentsRefused",
    "DirectiveRefused",
    "EnvelopeRefused",
    "KeyMissing",
    "MetadataIncomplete",
    "MetadataRefused",
    "ReleaseRefused",
    "ReportRefused",
    "TrustRefused",
]


class TrustRefused(RefusedError):
    """Something that is not to be believed or not to be done; nothing was changed."""

    code = "untrusted"

    def __init__(self, reason: Reason, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class EnvelopeRefused(TrustRefused):
    """A signed message with a wrong, missing, doubled or unknown signature, or with another content than it should have."""

    code = "envelope_invalid"
    hint = "The sender's key may have been replaced: refresh the trust metadata. If it persists, treat it as an attack."


class MetadataRefused(TrustRefused):
    """TUF metadata that breaks a rule; the trusted set is as it was."""

    code = "metadata_refused"
    hint = "What was trusted before still is. `hub doctor` on the hub tells whether its metadata is in order."


class MetadataIncomplete(HubError):
    """A metadata file has not arrived (yet). Not a fault of anybody: the rest is on its way, or the hub is away."""

    code = "metadata_incomplete"
    hint = "Nothing was changed; it is tried again when more metadata arrives."


class DirectiveRefused(TrustRefused):
    """A directive that is not for this spoke, not new, not in time, or not from the hub."""

    code = "directive_refused"


class ReleaseRefused(TrustRefused):
    """A model version that is not released, denied, not for this zone or regime, or a step back that nobody granted."""

    code = "release_refused"


class ContentsRefused(TrustRefused):
    """A package whose bytes, names or publisher are not what was released."""

    code = "contents_refused"


class ReportRefused(TrustRefused):
    """A report that is not from that spoke, has been seen before, or contradicts itself."""

    code = "report_refused"


class KeyMissing(OperatorError):
    """A private key that is needed for signing is not on this machine."""

    code = "key_missing"
    hint = "Sign on the machine that holds the key (`hub root sign`), then bring the signed file back."

"""Signed documents: DSSE envelopes (https://github.com/secure-systems-lab/dsse) around canonical JSON.

The signature is checked before the payload is parsed, and the payload type names kind and schema, so that a signed report can
never be read as a directive. Signatures by unknown keys are ignored, two by one key count once.
"""

import binascii
import json
from collections.abc import Iterable
from typing import TypeVar

from msgspec.structs import fields
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer

from model_formats.core.document import Document
from sync.core.types import Reason
from sync.trust.errors import EnvelopeRefused

__all__ = ["payload_type", "seal", "unseal"]

D = TypeVar("D", bound=Document)

MAX_SIGNATURES = 16


def payload_type(type_: type[Document]) -> str:
    """The DSSE payload type of a kind of document, for example `application/vnd.spokeshave.directive.v1+json`."""
    default = {field.name: field.default for field in fields(type_)}
    return f"application/vnd.spokeshave.{default['kind']}.v{default['schema_']}+json"


def seal(document: Document, *signers: Signer) -> bytes:
    """Sign a document with every signer; returns the envelope as JSON bytes."""
    envelope = Envelope(document.canonical(), payload_type(type(document)), {})
    for signer in signers:
        envelope.sign(signer)
    return json.dumps(envelope.to_dict(), separators=(",", ":"), sort_keys=True).encode()


def unseal(
    data: bytes, keys: Iterable[Key], type_: type[D], threshold: int = 1, *, reason: Reason = Reason.DIRECTIVE_UNTRUSTED
) -> D:
    """Check and open an envelope: at least `threshold` different keys of `keys` must have signed it.

    Raises EnvelopeRefused (with `reason`), or DocumentRefused when what was rightly signed is not a `type_`.
    """
    name = type_.__name__
    envelope = _read(data, type_, reason)
    if envelope.payload_type != payload_type(type_):
        raise EnvelopeRefused(reason, f"{name}: payload type is {envelope.payload_type!r}, not {payload_type(type_)!r}")
    distinct = {key.keyid: key for key in keys}
    if threshold < 1 or len(distinct) < threshold:
        raise EnvelopeRefused(reason, f"{name}: {len(distinct)} keys are known, {threshold} must sign")
    try:
        envelope.verify(list(distinct.values()), threshold)
    except VerificationError as e:
        raise EnvelopeRefused(reason, f"{name}: not signed by {threshold} of the {len(distinct)} keys that may sign it") from e
    document = type_.parse(envelope.payload)
    if document.canonical() != envelope.payload:
        raise EnvelopeRefused(reason, f"{name}: the signed bytes are not canonical JSON")
    return document


def _read(data: bytes, type_: type[Document], reason: Reason) -> Envelope:
    if len(data) > type_.max_bytes * 4 // 3 + 16_384:
        raise EnvelopeRefused(reason, f"{type_.__name__}: an envelope of {len(data)} bytes is more than is allowed")
    try:
        read = json.loads(data)
        if len(read["signatures"]) > MAX_SIGNATURES:
            raise ValueError(f"more than {MAX_SIGNATURES} signatures")
        return Envelope.from_dict(read)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as e:
        raise EnvelopeRefused(reason, f"{type_.__name__}: not a DSSE envelope: {e}") from e

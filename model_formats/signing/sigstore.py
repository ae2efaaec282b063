"""Keyless signatures: a short-lived certificate for an identity, by Sigstore (a public or a private instance).

Signing needs the sigstore library (extra `[sigstore]`), and so does the full check: certificate transparency, the log entry,
and that the certificate was valid when the log saw the signature. A spoke without the library checks what it can with
`cryptography` (identity, issuer, signature, files); that the hub did the rest is what the release under the TUF targets role
says. The publisher's `proof` tells which of the two it was.
"""

import tempfile
from collections.abc import Sequence
from typing import Any, Literal

from cryptography import x509

from model_formats.core.errors import OperatorError
from model_formats.signing.publisher_policy import (
    Publisher,
    PublisherPolicy,
    SigstoreRule,
    certificate_key,
    certificate_names,
    check_signature,
)
from model_formats.signing.statement import PublisherUntrusted, pae

__all__ = ["SigstoreRefused", "SigstoreSigner", "verify_keyless"]

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_ISSUER_OLD = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
"""Fulcio's certificate extensions with the OpenID Connect issuer: DER string, and the older raw string."""


class SigstoreRefused(OperatorError):
    """A Sigstore instance gave no certificate or took no log entry."""

    code = "sigstore_refused"
    hint = "Get a new identity token (they live for minutes), and check that its issuer is one the instance accepts."


class SigstoreSigner:
    """Signs with an OpenID Connect identity token at a Sigstore instance. Needs the network and the `[sigstore]` extra."""

    def __init__(self, token: str, *, trust_config: str | None = None) -> None:
        """`trust_config`: client trust configuration (JSON text) of a private instance; None is the public one."""
        self._token, self._trust_config = token, trust_config

    def bundle(self, payload: bytes) -> bytes:
        """Sign a statement. Raises SigstoreRefused."""
        from sigstore import dsse
        from sigstore.models import ClientTrustConfig
        from sigstore.oidc import IdentityToken
        from sigstore.sign import SigningContext

        try:
            config = ClientTrustConfig.from_json(self._trust_config) if self._trust_config else ClientTrustConfig.production()
            with SigningContext.from_trust_config(config).signer(IdentityToken(self._token)) as signer:
                text: str = signer.sign_dsse(dsse.Statement(payload)).to_json()
        except Exception as e:  # the library's errors have no common parent, and those of its HTTP client come through
            raise SigstoreRefused(f"Sigstore did not sign: {type(e).__name__}: {e}") from e
        return text.encode()


def verify_keyless(bundle: bytes, certificate: bytes, payload: bytes, signature: bytes, policy: PublisherPolicy) -> Publisher:
    """Who signed a bundle with a single certificate (DER). Raises PublisherUntrusted that names the rule."""
    try:
        leaf = x509.load_der_x509_certificate(certificate)
    except ValueError as e:
        raise PublisherUntrusted(f"signature: certificate is malformed: {e}") from e
    names, issuer = certificate_names(leaf), _issuer_of(leaf)
    rules = [r for r in policy.sigstore if r.identity in names and r.issuer == issuer]
    if not rules:
        raise PublisherUntrusted(f"signature: {' / '.join(names) or 'nobody'} by {issuer} may not release this model")
    check_signature(certificate_key(leaf), signature, pae(payload))
    return Publisher("sigstore", rules[0].identity, _full_check(bundle, payload, rules))


def _full_check(bundle: bytes, payload: bytes, rules: Sequence[SigstoreRule]) -> Literal["full", "released"]:
    try:
        from sigstore.errors import Error
        from sigstore.models import Bundle
        from sigstore.verify.policy import Identity
    except ImportError:
        return "released"
    refusal: Exception | None = None
    for rule in rules:  # one of them has to hold: rules of one identity differ in their roots while an instance rolls its keys
        try:
            identity = Identity(identity=rule.identity, issuer=rule.issuer)
            if _verifier(rule.trusted_root).verify_dsse(Bundle.from_json(bundle), identity)[1] == payload:
                return "full"
            refusal = ValueError("the library read another payload")
        except (Error, ValueError) as e:
            refusal = e
    raise PublisherUntrusted(f"signature: Sigstore does not confirm it: {refusal}") from refusal


def _verifier(trusted_root: str | None) -> Any:
    """A verifier that never goes online: for the public instance it takes the library's own copy of the root."""
    from sigstore.models import ClientTrustConfig, TrustedRoot
    from sigstore.verify import Verifier

    if trusted_root is None:
        return Verifier(trusted_root=ClientTrustConfig.production(offline=True).trusted_root)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # the library reads files only
        file.write(trusted_root)
        file.flush()
        return Verifier(trusted_root=TrustedRoot.from_file(file.name))


def _issuer_of(leaf: x509.Certificate) -> str | None:
    for oid in (_ISSUER, _ISSUER_OLD):
        try:
            value = leaf.extensions.get_extension_for_oid(oid).value
        except x509.ExtensionNotFound:
            continue
        if isinstance(value, x509.UnrecognizedExtension):
            return _text(value.value, der=oid == _ISSUER)
    return None


def _text(data: bytes, *, der: bool) -> str | None:
    """A DER UTF8String of fewer than 128 bytes, or plain text."""
    if der and (len(data) < 2 or data[0] != 0x0C or data[1] != len(data) - 2):
        return None
    return (data[2:] if der else data).decode(errors="replace")

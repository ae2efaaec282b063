"""The policy of who may sign a model family, as its TUF target states it, and the check of keys and certificates against it.

An empty policy trusts nobody. Certificates are checked at the time given (the reference library checks them at the moment they
became valid, and so accepts expired ones), for signing code, up to the roots of the policy and not those of the machine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError
from msgspec import Meta

from model_formats.core.document import DocumentRefused, Value
from model_formats.signing.statement import PublisherUntrusted

__all__ = ["CertificateRule", "Publisher", "PublisherPolicy", "SigstoreRule", "key_id"]

Pem = Annotated[str, Meta(min_length=1, max_length=8192)]


class CertificateRule(Value):
    """Certificates under these roots, for this name."""

    roots: tuple[Pem, ...]
    name: str
    """Subject alternative name (URI, e-mail or DNS) or else common name; compared whole."""


class SigstoreRule(Value):
    """A keyless identity: who (certificate's alternative name), and which OpenID Connect issuer said so."""

    identity: str
    issuer: str
    trusted_root: str | None = None
    """Sigstore trusted root (JSON text) of a private instance; None is the public one. Only the sigstore library reads it."""


class PublisherPolicy(Value):
    """Everybody who may release a model family. Any one entry is enough; thresholds live in the TUF role."""

    keys: tuple[Pem, ...] = ()
    """Public keys (EC, PEM)."""
    certificates: tuple[CertificateRule, ...] = ()
    sigstore: tuple[SigstoreRule, ...] = ()

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a policy from plain JSON values (a TUF target's `custom`). Raises PublisherUntrusted."""
        try:
            return cls.of_plain(value)
        except DocumentRefused as e:
            raise PublisherUntrusted(f"publisher policy: malformed: {e.message}") from e

    def __or__(self, other: "PublisherPolicy") -> "PublisherPolicy":
        return PublisherPolicy(
            keys=self.keys + other.keys,
            certificates=self.certificates + other.certificates,
            sigstore=self.sigstore + other.sigstore,
        )


@dataclass(frozen=True, slots=True)
class Publisher:
    """Who signed. `proof` tells how far it was checked here: `released` leaves a keyless certificate's chain to hub and TUF."""

    kind: Literal["key", "certificate", "sigstore"]
    name: str
    proof: Literal["full", "released"] = "full"


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the public key's PEM, hexadecimal: the hint that Model Signing bundles carry."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as PEM."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def curve_hash(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    """The hash that goes with a curve. Raises PublisherUntrusted for curves outside the NIST three."""
    found: dict[str, hashes.HashAlgorithm] = {
        "secp256r1": hashes.SHA256(),
        "secp384r1": hashes.SHA384(),
        "secp521r1": hashes.SHA512(),
    }
    if key.curve.name not in found:
        raise PublisherUntrusted(f"signature: curve {key.curve.name} is not supported")
    return found[key.curve.name]


def check_signature(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> None:
    """Verify one ECDSA signature. Raises PublisherUntrusted."""
    try:
        key.verify(signature, signed, ec.ECDSA(curve_hash(key)))
    except InvalidSignature as e:
        raise PublisherUntrusted("signature: does not verify with the publisher's key") from e


def trusted_key(policy: PublisherPolicy, hint: str) -> ec.EllipticCurvePublicKey:
    """The policy's key that the bundle names. Raises PublisherUntrusted."""
    for pem in policy.keys:
        key = load_public(pem.encode())
        if key_id(key) == hint:
            return key
    raise PublisherUntrusted(f"signature: key {hint[:16]} is not among the {len(policy.keys)} keys that may release this model")


def trusted_certificate(policy: PublisherPolicy, chain: Sequence[bytes], now: datetime) -> tuple[ec.EllipticCurvePublicKey, str]:
    """Key and name of a certificate (DER, leaf first) that the policy trusts at `now`. Raises PublisherUntrusted."""
    try:
        leaf, *rest = [x509.load_der_x509_certificate(der) for der in chain]
    except ValueError as e:
        raise PublisherUntrusted(f"signature: certificate is malformed: {e}") from e
    _check_validity(leaf, now)
    _check_purpose(leaf)
    names = certificate_names(leaf)
    rules = [rule for rule in policy.certificates if rule.name in names]
    if not rules:
        raise PublisherUntrusted(f"signature: {' / '.join(names) or 'a nameless certificate'} may not release this model")
    for rule in rules:
        if _chains(leaf, rest, rule, now):
            return certificate_key(leaf), rule.name
    raise PublisherUntrusted(
        f"signature: the certificate of {names[0]} does not lead to a root of the policy at {now:%Y-%m-%d %H:%M}"
    )


def certificate_names(leaf: x509.Certificate) -> list[str]:
    """Alternative names, or the common name where there are none."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [str(n.value) for n in names if isinstance(n, x509.UniformResourceIdentifier | x509.RFC822Name | x509.DNSName)]
    except x509.ExtensionNotFound:
        found = []
    return found or [str(a.value) for a in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]


def certificate_key(leaf: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's key. Raises PublisherUntrusted when it is not EC."""
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PublisherUntrusted("signature: the certificate's key is not an elliptic-curve key")
    return key


def load_public(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Read a PEM public key. Raises PublisherUntrusted when it is not EC."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as e:
        raise PublisherUntrusted(f"publisher key: not a PEM public key: {e}") from e
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PublisherUntrusted("publisher key: not an elliptic-curve key")
    return key


def _check_validity(leaf: x509.Certificate, now: datetime) -> None:
    if now < leaf.not_valid_before_utc:
        raise PublisherUntrusted(
            f"signature: the certificate is not valid before {leaf.not_valid_before_utc}; the clock used says {now}"
        )
    if now > leaf.not_valid_after_utc:
        raise PublisherUntrusted(f"signature: the certificate expired on {leaf.not_valid_after_utc}; the clock used says {now}")


def _check_purpose(leaf: x509.Certificate) -> None:
    """A certificate for web servers or mail must not release models."""
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        purpose = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as e:
        raise PublisherUntrusted(
            f"signature: the certificate does not say what it is for ({e.oid.dotted_string} is missing)"
        ) from e
    if not usage.digital_signature or ExtendedKeyUsageOID.CODE_SIGNING not in purpose:
        raise PublisherUntrusted(
            "signature: the certificate is not for signing code (digitalSignature and codeSigning are needed)"
        )


def _chains(leaf: x509.Certificate, rest: Sequence[x509.Certificate], rule: CertificateRule, now: datetime) -> bool:
    anything = ExtensionPolicy.permit_all()
    authority = anything.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
    try:
        roots = [x509.load_pem_x509_certificate(pem.encode()) for pem in rule.roots]
        builder = PolicyBuilder().store(Store(roots)).time(now).max_chain_depth(4)
        builder.extension_policies(ca_policy=authority, ee_policy=anything).build_client_verifier().verify(leaf, list(rest))
    except (VerificationError, ValueError):
        return False
    return True


def _is_authority(_policy: object, _certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("an intermediate that is not an authority")

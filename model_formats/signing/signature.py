"""The publisher's signature: bundles in the OpenSSF Model Signing format, made and checked with `cryptography` alone.

`model_signing verify` of the reference library accepts what `sign_package` makes, on the unpacked folder, and `verify_package`
accepts what that library signs. The check needs the package's pages, not its weights: their digests stand in the index, so a
spoke can refuse a publisher before it fetches a byte of the model.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from model_formats.core.errors import OperatorError
from model_formats.core.files import atomic_write
from model_formats.package.image_layout import BlobReader
from model_formats.package.oci import SIGNATURE, canonical
from model_formats.package.read import open_package
from model_formats.signing.publisher_policy import (
    CertificateRule,
    Publisher,
    PublisherPolicy,
    SigstoreRule,
    check_signature,
    curve_hash,
    key_id,
    load_public,
    public_pem,
    trusted_certificate,
    trusted_key,
)
from model_formats.signing.sigstore import SigstoreSigner, verify_keyless
from model_formats.signing.statement import IN_TOTO, PublisherUntrusted, pae, read_statement, statement

__all__ = [
    "CertificateRule",
    "CertificateSigner",
    "KeySigner",
    "Publisher",
    "PublisherPolicy",
    "PublisherUntrusted",
    "Signer",
    "SigningKeyInvalid",
    "SigstoreSigner",
    "SigstoreRule",
    "sign_package",
    "verify_package",
]

MAX_BUNDLE = 4 << 20


class SigningKeyInvalid(OperatorError):
    """The signing key or certificate cannot be used."""

    code = "signing_key_invalid"
    hint = "Give an unencrypted EC private key (P-256) in PEM, and a certificate chain that belongs to it."


class Signer(Protocol):
    """Somebody who signs: a key, a certificate, or an identity through Sigstore (`SigstoreSigner`)."""

    def bundle(self, payload: bytes) -> bytes:
        """A Sigstore bundle 0.3 (JSON) around the signed in-toto statement."""


class KeySigner:
    """Signs with an EC private key; the bundle names it by hash."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """A new P-256 key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, *, password: bytes | None = None) -> Self:
        """Read a PEM private key. Raises SigningKeyInvalid."""
        return cls(_load_private(path, password))

    def save(self, path: Path) -> None:
        """Write the private key as PEM, readable by its owner only."""
        pem = self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        atomic_write(path, pem, mode=0o600)

    @property
    def public_pem(self) -> str:
        """The public key: what a PublisherPolicy lists."""
        return public_pem(self._key.public_key()).decode()

    @property
    def policy(self) -> PublisherPolicy:
        """A policy that trusts this key."""
        return PublisherPolicy(keys=(self.public_pem,))

    def bundle(self, payload: bytes) -> bytes:
        """Sign a statement."""
        return _bundle(self._key, payload, {"publicKey": {"hint": key_id(self._key.public_key())}})


class CertificateSigner:
    """Signs with a key and carries the certificate chain, leaf first (the root may be left out)."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate]) -> None:
        if not chain or chain[0].public_key() != key.public_key():
            raise SigningKeyInvalid("the first certificate does not belong to the signing key")
        self._key, self._chain = key, tuple(chain)

    @classmethod
    def load(cls, key: Path, chain: Path, *, password: bytes | None = None) -> Self:
        """Read a PEM private key and a PEM chain. Raises SigningKeyInvalid."""
        try:
            return cls(_load_private(key, password), x509.load_pem_x509_certificates(chain.read_bytes()))
        except (OSError, ValueError) as e:
            raise SigningKeyInvalid(f"{chain}: {e}") from e

    def bundle(self, payload: bytes) -> bytes:
        """Sign a statement."""
        chain = [{"rawBytes": _b64(c.public_bytes(serialization.Encoding.DER))} for c in self._chain]
        return _bundle(self._key, payload, {"x509CertificateChain": {"certificates": chain}})


def sign_package(blobs: BlobReader, index: str, signer: Signer) -> bytes:
    """Sign every file of a version by path and digest; hang it on the index by `attach(layout, index, SIGNATURE, bundle)`."""
    package = open_package(blobs, index)
    name = f"{package.spec.model}@{package.spec.version}"
    return signer.bundle(statement(name, {path: blob.digest for path, blob in package.files.items()}))


def verify_package(blobs: BlobReader, index: str, bundle: bytes, policy: PublisherPolicy, now: datetime) -> Publisher:
    """Who published a version. Raises PublisherUntrusted that names the rule; PackageInvalid, PackageTampered for the package.

    1. The bundle is a Sigstore bundle 0.3 of bounded size with exactly one signature, over an in-toto statement.
    2. The signer is one the policy names: a key by its hash; or a certificate that is valid at `now`, for signing code, for a
       name of the policy, under a root of the policy; or a keyless identity (see `sigstore.py`).
    3. The signature is that signer's.
    4. The statement lists exactly the files of the package, by path and digest: nothing left out, nothing else, no exemptions.
    """
    material, payload, signature = _open_bundle(bundle)  # 1
    match material:
        case {"publicKey": {"hint": str(hint)}}:
            key = trusted_key(policy, hint)  # 2
            publisher = Publisher("key", hint)
        case {"publicKey": {"rawBytes": str(pem)}}:  # the reference library before 1.1 wrote the key itself, in PEM
            hint = _hint(pem)
            key, publisher = trusted_key(policy, hint), Publisher("key", hint)  # 2
        case {"x509CertificateChain": {"certificates": [*listed]}}:
            key, name = trusted_certificate(policy, _ders(listed), now)  # 2
            publisher = Publisher("certificate", name)
        case {"certificate": {"rawBytes": str()}}:
            [leaf] = _ders([material["certificate"]])
            publisher = verify_keyless(bundle, leaf, payload, signature, policy)  # 2, 3
            _compare(blobs, index, payload)  # 4
            return publisher
        case _:
            raise PublisherUntrusted("signature: the bundle names neither a key nor a certificate chain")
    check_signature(key, signature, pae(payload))  # 3
    _compare(blobs, index, payload)  # 4
    return publisher


def _compare(blobs: BlobReader, index: str, payload: bytes) -> None:
    signed = read_statement(payload)
    held = {path: blob.digest for path, blob in open_package(blobs, index).files.items()}
    if signed != held:
        odd = sorted(p for p in signed.keys() | held.keys() if signed.get(p) != held.get(p))
        raise PublisherUntrusted(
            f"signature: {odd[0]} is not what was signed" + (f" (and {len(odd) - 1} more)" if odd[1:] else "")
        )


def _bundle(key: ec.EllipticCurvePrivateKey, payload: bytes, material: dict[str, Any]) -> bytes:
    signature = key.sign(pae(payload), ec.ECDSA(curve_hash(key.public_key())))
    return canonical(
        {
            "mediaType": SIGNATURE,
            "verificationMaterial": {**material, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": _b64(payload),
                "payloadType": IN_TOTO,
                "signatures": [{"sig": _b64(signature), "keyid": ""}],
            },
        }
    )


def _open_bundle(bundle: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    if len(bundle) > MAX_BUNDLE:
        raise PublisherUntrusted(f"signature: {len(bundle)} bytes, more than the {MAX_BUNDLE} allowed")
    try:
        page = json.loads(bundle)
        envelope, material = page["dsseEnvelope"], page["verificationMaterial"]
        signatures = envelope["signatures"]
        if page["mediaType"] != SIGNATURE or envelope["payloadType"] != IN_TOTO or len(signatures) != 1:
            raise PublisherUntrusted("signature: not a Sigstore bundle 0.3 with one signature over an in-toto statement")
        kinds = {"publicKey", "x509CertificateChain", "certificate"} & {k for k, v in material.items() if v}
        if len(kinds) != 1:
            raise PublisherUntrusted(f"signature: {len(kinds)} kinds of signer in one bundle, not one")
        if "certificate" in kinds and not material.get("tlogEntries"):
            raise PublisherUntrusted("signature: a keyless signature that no log has seen")
        payload, signature = _unb64(envelope["payload"]), _unb64(signatures[0]["sig"])
        return {k: material[k] for k in (*kinds, "tlogEntries") if k in material}, payload, signature
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise PublisherUntrusted(f"signature: the bundle is malformed: {e!r}") from e


def _hint(pem: str) -> str:
    try:
        return key_id(load_public(_unb64(pem)))
    except ValueError as e:
        raise PublisherUntrusted(f"signature: the public key is malformed: {e}") from e


def _ders(listed: Sequence[Any]) -> list[bytes]:
    try:
        return [_unb64(c["rawBytes"]) for c in listed]
    except (ValueError, KeyError, TypeError) as e:
        raise PublisherUntrusted(f"signature: a certificate is malformed: {e!r}") from e


def _load_private(path: Path, password: bytes | None) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password)
    except (OSError, ValueError, TypeError) as e:
        raise SigningKeyInvalid(f"{path}: {e}") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SigningKeyInvalid(f"{path}: not an elliptic-curve key")
    return key


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as e:
        raise ValueError("not base64") from e

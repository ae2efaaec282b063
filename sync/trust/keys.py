"""Keys on disk and in documents: Ed25519 for roles, P-256 for devices (they also carry a TLS certificate).

Everything is securesystemslib's `Signer` and `Key`, so that a key in an HSM, a cloud KMS or a TPM can take the place of a file
without change elsewhere: whoever has a `Signer` may sign.
"""

from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, load_pem_public_key
from msgspec import Meta
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from model_formats.core.document import Value
from model_formats.core.errors import OperatorError
from model_formats.core.files import atomic_write
from model_formats.core.types import digest_of
from sync.trust.errors import KeyMissing

__all__ = [
    "Key",
    "KeyFileInvalid",
    "PublicKey",
    "Signer",
    "device_signer",
    "fingerprint",
    "key_of_certificate",
    "key_of_pem",
    "load_signer",
    "pem_of",
    "role_signer",
    "save_signer",
]


class KeyFileInvalid(OperatorError):
    """A key file that cannot be read, is of another kind, or lies open to others."""

    code = "key_file_invalid"
    hint = "Key files are PEM (PKCS#8), Ed25519 or EC P-256, with mode 0600."


class PublicKey(Value):
    """A public key inside a document: PEM, so that any tool can read it."""

    pem: Annotated[str, Meta(max_length=2000)]

    def key(self) -> Key:
        """The usable key; its id is derived from the key itself and cannot be chosen by the document's author."""
        return key_of_pem(self.pem.encode())


def role_signer() -> CryptoSigner:
    """A fresh Ed25519 key pair, for a TUF role or the director."""
    return CryptoSigner.generate_ed25519()


def device_signer() -> CryptoSigner:
    """A fresh P-256 key pair, for a spoke or a publisher."""
    return CryptoSigner.generate_ecdsa()


def save_signer(path: Path, signer: CryptoSigner) -> None:
    """Write the private key as PKCS#8 PEM, mode 0600. Never replaces a key: raises KeyFileInvalid where one is."""
    if path.exists():
        raise KeyFileInvalid(f"{path} exists; a key is never overwritten", hint="Move the old key away, or keep it.")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write(path, signer.private_bytes, mode=0o600)


def load_signer(path: Path) -> CryptoSigner:
    """Read a private key file. Raises KeyMissing, or KeyFileInvalid when it is damaged or others may read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise KeyFileInvalid(f"{path} may be read by others (mode {path.stat().st_mode & 0o777:o})", hint=f"chmod 600 {path}")
        private = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError as e:
        raise KeyMissing(f"the private key {path.name} is not in {path.parent}") from e
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as e:
        raise KeyFileInvalid(f"{path} is not a private key: {e}") from e
    if not isinstance(private, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise KeyFileInvalid(f"{path} is neither Ed25519 nor EC")
    return CryptoSigner(private, _key_of(private.public_key()))


def key_of_pem(pem: bytes) -> Key:
    """A public key from PEM. Raises KeyFileInvalid on anything but Ed25519 and P-256."""
    try:
        public = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as e:
        raise KeyFileInvalid(f"not a public key: {e}") from e
    return _key_of(public)


def key_of_certificate(pem: bytes) -> Key:
    """The key inside an X.509 certificate (PEM). The certificate itself is not judged here."""
    try:
        return _key_of(x509.load_pem_x509_certificate(pem).public_key())
    except (ValueError, UnsupportedAlgorithm) as e:
        raise KeyFileInvalid(f"not a certificate: {e}") from e


def fingerprint(certificate: bytes) -> str:
    """Digest of a certificate's public key (SubjectPublicKeyInfo, DER): the same after a renewal, and told by openssl too."""
    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as e:
        raise KeyFileInvalid(f"not a certificate: {e}") from e
    return digest_of(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def pem_of(key: Key) -> str:
    """A key made here, as PEM."""
    if not isinstance(key, SSlibKey):
        raise KeyFileInvalid(f"a key of kind {key.keytype} has no PEM form")
    if key.keytype == "ed25519":
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(key.keyval["public"])))
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return str(key.keyval["public"])


def _key_of(public: object) -> SSlibKey:
    if isinstance(public, EllipticCurvePublicKey) and not isinstance(public.curve, SECP256R1):
        raise KeyFileInvalid(f"elliptic curve {public.curve.name} is not used here")
    if not isinstance(public, Ed25519PublicKey | EllipticCurvePublicKey):
        raise KeyFileInvalid(f"{type(public).__name__} is neither Ed25519 nor P-256")
    return SSlibKey.from_crypto(public)

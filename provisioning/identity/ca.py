"""The device CA: one EC P-256 authority for a hub, its servers and its spokes.

A certificate says who and until when, but not what is allowed: the broker's access list and the hub's database say that. Spokes
get `clientAuth` only and servers `serverAuth` only, so neither can play the other. Profile: RFC 5280.
"""

import base64
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from model_formats.core.document import Document, Value
from model_formats.core.errors import OperatorError, RefusedError
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime
from sync.core.tls import TlsFiles
from sync.core.types import SpokeId

__all__ = ["AuthorityExists", "AuthorityMissing", "CsrRefused", "DeviceCA", "pin_of"]

_SKEW = timedelta(minutes=10)
"""A certificate is good from a little before it was made, since clocks of one site differ."""
_CA_LIFE = timedelta(days=3653)


class AuthorityExists(OperatorError):
    """A second authority on one folder would lock out all that the first one enrolled."""

    code = "ca_exists"
    hint = "Use the authority that is there, or choose another folder."


class AuthorityMissing(OperatorError):
    """No authority in this folder, or not a readable one."""

    code = "ca_missing"
    hint = "Run `hub init`, or restore the folder from a backup."


class CsrRefused(RefusedError):
    """A certificate request that is not one, or is not signed by its own key, or has another kind of key."""

    code = "csr_refused"
    http = 400
    hint = "Run `spoke enrol` again; it makes an EC P-256 key and a request for it."


class _Revoked(Value):
    serial: str
    at: AwareDatetime


class _Revocations(Document):
    kind: Literal["revocations"] = "revocations"
    schema_: Literal[1] = 1
    max_bytes: ClassVar[int] = 16 << 20
    revoked: tuple[_Revoked, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceCA:
    """The authority in a folder: `ca.crt`, `ca.key` (0600), `revoked.json`, `crl.pem`."""

    folder: Path
    _certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path, *, name: str = "Spokeshave device CA", now: datetime) -> "DeviceCA":
        """Make a new authority. Raises AuthorityExists where one is."""
        if (folder / "ca.crt").exists() or (folder / "ca.key").exists():
            raise AuthorityExists(f"{folder} holds a device CA already")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, key.public_key(), key.public_key(), now, _CA_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
        atomic_write(folder / "ca.key", _private_pem(key), mode=0o600)
        atomic_write(folder / "ca.crt", builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
        authority = cls.open(folder)
        authority._write_crl((), now)
        return authority

    @classmethod
    def open(cls, folder: Path) -> "DeviceCA":
        """The authority in a folder. Raises AuthorityMissing."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as e:
            raise AuthorityMissing(f"no usable device CA in {folder}: {e}") from e
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise AuthorityMissing(f"{folder}: ca.key is not the key of ca.crt")
        return cls(folder, certificate, key)

    @property
    def certificate(self) -> bytes:
        """The CA's certificate, PEM."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def crl_path(self) -> Path:
        """The revocation list, PEM; rewritten by every `revoke`."""
        return self.folder / "crl.pem"

    @property
    def pin(self) -> str:
        """Fingerprint of the CA's public key, as enrolment codes carry it."""
        return pin_of(self.certificate)

    def sign_csr(self, csr: bytes, spoke: SpokeId, *, now: datetime, life: timedelta = timedelta(days=90)) -> bytes:
        """A client certificate (PEM) for a spoke. Only the key is taken from the request; names and uses are ours.

        Raises CsrRefused.
        """
        return self._issue_client(_csr_key(csr), spoke.username, now, life).public_bytes(Encoding.PEM)

    def issue_client(self, folder: Path, name: str = "hub", *, now: datetime, life: timedelta = timedelta(days=398)) -> TlsFiles:
        """Key and certificate of one connection of the hub to its broker: `<name>.key`, `<name>.crt`, `ca.crt` in `folder`."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._write_pair(folder, name, key, self._issue_client(key.public_key(), name, now, life))

    def issue_server(
        self, folder: Path, names: Sequence[str], *, now: datetime, life: timedelta = timedelta(days=398)
    ) -> TlsFiles:
        """Key and certificate for broker and HTTPS, under host names and IP addresses: `server.key`, `server.crt`, `ca.crt`."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._leaf(key.public_key(), names[0], now, life, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        return self._write_pair(folder, "server", key, builder.sign(self._key, SHA256()))

    def revoke(self, certificate: bytes, *, now: datetime) -> None:
        """Put a certificate (PEM) on the revocation list. Doing it twice is doing it once."""
        serial = f"{x509.load_pem_x509_certificate(certificate).serial_number:x}"
        revoked = self._revoked()
        if serial not in {entry.serial for entry in revoked}:
            revoked = (*revoked, _Revoked(serial=serial, at=now))
            atomic_write(self.folder / "revoked.json", _Revocations(revoked=revoked).canonical())
        self._write_crl(revoked, now)

    def revoked(self, certificate: bytes) -> bool:
        """Whether a certificate is on the revocation list."""
        serial = f"{x509.load_pem_x509_certificate(certificate).serial_number:x}"
        return serial in {entry.serial for entry in self._revoked()}

    # ---- within -----------------------------------------------------------------------------------------------------------

    def _issue_client(self, key: ec.EllipticCurvePublicKey, name: str, now: datetime, life: timedelta) -> x509.Certificate:
        return self._leaf(key, name, now, life, ExtendedKeyUsageOID.CLIENT_AUTH).sign(self._key, SHA256())

    def _leaf(
        self, key: ec.EllipticCurvePublicKey, name: str, now: datetime, life: timedelta, use: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._certificate.subject, key, self._key.public_key(), now, life)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
        return builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)

    def _write_pair(self, folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> TlsFiles:
        files = TlsFiles(ca=folder / "ca.crt", certificate=folder / f"{name}.crt", key=folder / f"{name}.key")
        atomic_write(files.key, _private_pem(key), mode=0o600)
        atomic_write(files.certificate, certificate.public_bytes(Encoding.PEM))
        if files.ca != self.folder / "ca.crt":
            atomic_write(files.ca, self.certificate)
        return files

    def _revoked(self) -> tuple[_Revoked, ...]:
        path = self.folder / "revoked.json"
        return _Revocations.parse(path.read_bytes()).revoked if path.exists() else ()

    def _write_crl(self, revoked: tuple[_Revoked, ...], now: datetime) -> None:
        # It is read from this file alone and rewritten with every change, so it need not expire (an expired one stops all).
        crl = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        crl = crl.last_update(now - _SKEW).next_update(now + _CA_LIFE)
        for entry in revoked:
            one = x509.RevokedCertificateBuilder().serial_number(int(entry.serial, 16)).revocation_date(entry.at)
            crl = crl.add_revoked_certificate(one.build())
        atomic_write(self.crl_path, crl.sign(self._key, SHA256()).public_bytes(Encoding.PEM))


def pin_of(certificate: bytes) -> str:
    """Fingerprint of a certificate's public key: SHA-256 over its SubjectPublicKeyInfo (as RFC 7469), 160 bits, base32."""
    public = x509.load_pem_x509_certificate(certificate).public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b32encode(hashlib.sha256(spki).digest()[:20]).decode().lower()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    now = now.astimezone(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - _SKEW).not_valid_after(now + life)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _csr_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr)
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as e:
        raise CsrRefused(f"not a certificate request: {e}") from e
    if not valid:
        raise CsrRefused("the certificate request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CsrRefused("the key of a certificate request must be EC P-256")
    return key


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

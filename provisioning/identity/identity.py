"""The identity of this spoke: key and certificate on disk, and the grant of its enrolment."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from securesystemslib.signer import CryptoSigner

from model_formats.core.errors import OperatorError, RefusedError
from model_formats.core.files import atomic_write
from provisioning.identity.document import HubAddress, IdentityDocument
from sync.core.tls import TlsFiles
from sync.core.types import Regime, SpokeId
from sync.trust.keys import device_signer, key_of_certificate, load_signer, pem_of, save_signer

__all__ = [
    "HubAddress",
    "Identity",
    "IdentityDocument",
    "NotEnrolled",
    "WrongCertificate",
    "device_csr",
    "device_key",
    "enrolled_as",
    "store",
]


class NotEnrolled(OperatorError):
    """There is no identity in this home, or a part of it is missing."""

    code = "not_enrolled"
    hint = "Get a code with `hub spoke invite` and run `spoke enrol`."


class WrongCertificate(RefusedError):
    """A certificate that is not for this spoke's key."""

    code = "certificate_wrong"
    hint = "The grant answers another request; run `spoke enrol` again with a new code."


@dataclass(frozen=True, slots=True)
class Identity:
    """The folder `home/identity`: `identity.json`, `device.key` (0600), `device.crt`, `ca.crt`, `root.json`."""

    folder: Path
    document: IdentityDocument

    @classmethod
    def load(cls, home: Path) -> "Identity":
        """Read the identity of a spoke's home. Raises NotEnrolled."""
        folder = home / "identity"
        for name in ("identity.json", "device.key", "device.crt", "ca.crt", "root.json"):
            if not (folder / name).is_file():
                raise NotEnrolled(f"{folder} has no {name}")
        return cls(folder, IdentityDocument.parse((folder / "identity.json").read_bytes()))

    @property
    def spoke(self) -> SpokeId:
        """Site and spoke."""
        return SpokeId(self.document.site, self.document.spoke)

    @property
    def zone(self) -> str:
        """Residency zone."""
        return self.document.zone

    @property
    def regime(self) -> Regime:
        """Data-protection regime of the site."""
        return self.document.regime

    @property
    def hub_url(self) -> str:
        """HTTPS base address of the hub."""
        return self.document.hub.url

    @property
    def broker_host(self) -> str:
        """Where the broker is."""
        return self.document.hub.broker_host

    @property
    def broker_port(self) -> int:
        """Where the broker listens."""
        return self.document.hub.broker_port

    @property
    def tls(self) -> TlsFiles:
        """For `MqttBus`, and through `sync.core.tls.client_context` for httpx."""
        return TlsFiles(self.folder / "ca.crt", self.folder / "device.crt", self.folder / "device.key")

    @property
    def tuf_root(self) -> bytes:
        """The root metadata this spoke was enrolled with: where its trust begins."""
        return (self.folder / "root.json").read_bytes()

    @property
    def certificate(self) -> bytes:
        """The device certificate, PEM."""
        return (self.folder / "device.crt").read_bytes()

    @property
    def public_key(self) -> bytes:
        """The device's public key, PEM."""
        return pem_of(key_of_certificate(self.certificate)).encode()

    def signer(self) -> CryptoSigner:
        """Signs reports and tokens with the device key."""
        return load_signer(self.folder / "device.key")

    def expires(self) -> datetime:
        """End of the certificate's life, UTC."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc

    def renewal_due(self, now: datetime) -> bool:
        """Whether two thirds of the certificate's life are over."""
        certificate = x509.load_pem_x509_certificate(self.certificate)
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return now >= begin + (end - begin) * 2 / 3

    def replace_certificate(self, certificate: bytes) -> None:
        """Take a renewed certificate for the same key; the bus takes it up with its next connect. Raises WrongCertificate."""
        _check_certificate(certificate, self.signer())
        atomic_write(self.folder / "device.crt", certificate)


def device_key(home: Path) -> CryptoSigner:
    """The device key of a home; made (0600) when there is none. It never leaves the device."""
    path = home / "identity" / "device.key"
    if not path.exists():
        save_signer(path, device_signer())
    return load_signer(path)


def device_csr(signer: CryptoSigner) -> bytes:
    """A certificate request (PEM) for the device key. It names nobody: the hub decides on the name."""
    key = _private(signer)
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256()).public_bytes(Encoding.PEM)


def enrolled_as(home: Path) -> SpokeId | None:
    """Which spoke this home is; None where it is none yet. Raises DocumentRefused."""
    path = home / "identity" / "identity.json"
    if not path.exists():
        return None
    document = IdentityDocument.read(path)
    return SpokeId(document.site, document.spoke)


def store(home: Path, document: IdentityDocument, *, certificate: bytes, ca: bytes, tuf_root: bytes) -> Identity:
    """Write an identity; `identity.json` comes last, so that a half-written one does not count. Raises WrongCertificate."""
    folder = home / "identity"
    _check_certificate(certificate, device_key(home))
    atomic_write(folder / "device.crt", certificate)
    atomic_write(folder / "ca.crt", ca)
    atomic_write(folder / "root.json", tuf_root)
    atomic_write(folder / "identity.json", document.canonical())
    return Identity.load(home)


def _check_certificate(certificate: bytes, signer: CryptoSigner) -> None:
    if key_of_certificate(certificate).keyid != signer.public_key.keyid:
        raise WrongCertificate("the certificate is for another key than this device's")


def _private(signer: CryptoSigner) -> EllipticCurvePrivateKey:
    key = load_pem_private_key(signer.private_bytes, None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise NotEnrolled("the device key is not an EC P-256 key")
    return key

"""The device CA: what it signs, what it refuses, what it remembers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.identity.ca import AuthorityExists, AuthorityMissing, CsrRefused, DeviceCA, pin_of
from provisioning.identity.identity import device_csr
from sync.core.types import SpokeId
from sync.trust.keys import device_signer, key_of_certificate

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def ca(tmp_path: Path) -> DeviceCA:
    return DeviceCA.create(tmp_path / "ca", now=NOW)


def test_a_spoke_gets_a_client_certificate_in_its_own_name(ca: DeviceCA) -> None:
    signer = device_signer()
    pem = ca.sign_csr(device_csr(signer), SpokeId("frankfurt", "till-2"), now=NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.subject.rfc4514_string() == "CN=frankfurt.till-2"
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_after_utc == NOW + timedelta(days=90)
    assert key_of_certificate(pem).keyid == signer.public_key.keyid
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.certificate))


def test_names_in_a_request_count_for_nothing(ca: DeviceCA) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    evil = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(evil).sign(key, SHA256()).public_bytes(Encoding.PEM)
    certificate = x509.load_pem_x509_certificate(ca.sign_csr(csr, SpokeId("dubai"), now=NOW))
    assert certificate.subject.rfc4514_string() == "CN=dubai.main"


def test_a_server_gets_its_names_and_server_use_only(ca: DeviceCA, tmp_path: Path) -> None:
    files = ca.issue_server(tmp_path / "tls", ["hub.example", "192.0.2.7"], now=NOW)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert files.key.stat().st_mode & 0o777 == 0o600


def test_the_key_of_the_authority_is_for_its_owner_only(ca: DeviceCA) -> None:
    assert (ca.folder / "ca.key").stat().st_mode & 0o777 == 0o600


def test_a_second_authority_in_one_folder_is_refused(ca: DeviceCA) -> None:
    with pytest.raises(AuthorityExists):
        DeviceCA.create(ca.folder, now=NOW)


def test_opening_gives_the_same_authority(ca: DeviceCA) -> None:
    again = DeviceCA.open(ca.folder)
    assert again.pin == ca.pin == pin_of(ca.certificate)
    assert len(ca.pin) == 32


def test_an_empty_folder_and_a_foreign_key_are_named(ca: DeviceCA, tmp_path: Path) -> None:
    with pytest.raises(AuthorityMissing):
        DeviceCA.open(tmp_path / "nowhere")
    other = DeviceCA.create(tmp_path / "other", now=NOW)
    (ca.folder / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(AuthorityMissing, match="not the key of"):
        DeviceCA.open(ca.folder)


def _csr_with(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256()).public_bytes(Encoding.PEM)


def _tampered() -> bytes:
    der = bytearray(x509.load_pem_x509_csr(_csr_with(ec.generate_private_key(ec.SECP256R1()))).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("fault", "csr"),
    [
        ("text", b"not a request"),
        ("rsa key", _csr_with(rsa.generate_private_key(65537, 2048))),
        ("another curve", _csr_with(ec.generate_private_key(ec.SECP384R1()))),
        ("signature of another", _tampered()),
        ("certificate", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"),
    ],
)
def test_a_bad_request_is_refused(ca: DeviceCA, fault: str, csr: bytes) -> None:
    with pytest.raises(CsrRefused):
        ca.sign_csr(csr, SpokeId("dubai"), now=NOW)


def test_a_revoked_certificate_is_on_the_list_and_stays_there(ca: DeviceCA) -> None:
    one, two = (ca.sign_csr(device_csr(device_signer()), SpokeId(name), now=NOW) for name in ("dubai", "frankfurt"))
    ca.revoke(one, now=NOW)
    ca.revoke(one, now=NOW)
    again = DeviceCA.open(ca.folder)
    assert again.revoked(one)
    assert not again.revoked(two)
    crl = x509.load_pem_x509_crl(again.crl_path.read_bytes())
    assert [entry.serial_number for entry in crl] == [x509.load_pem_x509_certificate(one).serial_number]
    public = x509.load_pem_x509_certificate(ca.certificate).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(public)

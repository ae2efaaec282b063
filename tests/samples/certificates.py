"""A certificate authority for tests, with the faults that a publisher's certificate can have."""

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from model_formats.signing.signature import CertificateRule, KeySigner

DAY = timedelta(days=1)


class Authority:
    """A root that is valid for ten years around `now`."""

    def __init__(self, now: datetime, name: str = "Test root", *, under: "Authority | None" = None) -> None:
        """`under`: an intermediate, signed by another authority."""
        self.now = now
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        above = under or self
        builder = _builder(self.name, above.name, self.key.public_key(), now - 1825 * DAY, now + 1825 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0 if under else 1), critical=True)
        builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
        ski = x509.SubjectKeyIdentifier.from_public_key(above.key.public_key())
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        self.certificate = builder.sign(above.key, hashes.SHA256())
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def rule(self, name: str) -> CertificateRule:
        return CertificateRule(roots=(self.pem,), name=name)

    def issue(
        self, email: str, *, fault: str = "", extension: x509.ExtensionType | None = None
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """A publisher's key and certificate; `fault` is one of expired, not yet valid, web server, no purpose."""
        key = ec.generate_private_key(ec.SECP256R1())
        start, end = {
            "expired": (self.now - 30 * DAY, self.now - DAY),
            "not yet valid": (self.now + DAY, self.now + 30 * DAY),
        }.get(fault, (self.now - DAY, self.now + 30 * DAY))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, email)])
        builder = _builder(subject, self.name, key.public_key(), start, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(email)]), critical=False)
        if fault != "no purpose":
            purpose = ExtendedKeyUsageOID.SERVER_AUTH if fault == "web server" else ExtendedKeyUsageOID.CODE_SIGNING
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if extension is not None:
            builder = builder.add_extension(extension, critical=False)
        ski = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        return key, builder.sign(self.key, hashes.SHA256())

    def write(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        KeySigner(key).save(folder / "key.pem")
        (folder / "leaf.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "root.pem").write_text(self.pem)


def _builder(subject, issuer, key, start, end):
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )

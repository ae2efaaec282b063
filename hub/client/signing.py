"""Who signs a version other than the publisher's key: a certificate, or an identity through Sigstore; each with its policy."""

import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from model_formats.signing.publisher_policy import certificate_names
from model_formats.signing.signature import (
    CertificateRule,
    CertificateSigner,
    PublisherPolicy,
    Signer,
    SigningKeyInvalid,
    SigstoreRule,
    SigstoreSigner,
)
from model_formats.signing.sigstore import SigstoreRefused

__all__ = ["by_certificate", "by_identity"]


def by_certificate(chain: Path, key: Path, *, root: Path | None, name: str | None) -> tuple[Signer, PublisherPolicy]:
    """Sign by a chain; spokes trust the name (default: the certificate's first) under `root` (default: the chain's last).

    Raises SigningKeyInvalid.
    """
    signer = CertificateSigner.load(key, chain)
    try:
        leaf, *rest = x509.load_pem_x509_certificates(chain.read_bytes())
        roots = x509.load_pem_x509_certificates(root.read_bytes()) if root else rest[-1:]
    except (OSError, ValueError) as e:
        raise SigningKeyInvalid(f"{root or chain}: {e}") from e
    names = certificate_names(leaf)
    if not roots:
        raise SigningKeyInvalid(f"{chain.name}: holds no root", hint="Give the root certificate by --root.")
    if not names or (name and name not in names):
        raise SigningKeyInvalid(
            f"{chain.name}: is for {' / '.join(names) or 'nobody'}, not {name}",
            hint="Leave --identity out, or give a name that the certificate holds.",
        )
    pems = tuple(r.public_bytes(serialization.Encoding.PEM).decode() for r in roots)
    return signer, PublisherPolicy(certificates=(CertificateRule(roots=pems, name=name or names[0]),))


def by_identity(identity: str, issuer: str, *, token: Path | None, config: Path | None) -> tuple[Signer, PublisherPolicy]:
    """Sign keyless; spokes trust this identity of this issuer, under the instance's own root when it is a private one.

    `token` None: the one that a CI job's environment offers. Raises SigstoreRefused.
    """
    text = config.read_text() if config else None
    rule = SigstoreRule(identity=identity, issuer=issuer, trusted_root=_trusted_root(text, config) if text and config else None)
    return SigstoreSigner(_token(token), trust_config=text), PublisherPolicy(sigstore=(rule,))


def _token(file: Path | None) -> str:
    if file:
        return file.read_text().strip()
    try:
        from sigstore.oidc import IdentityError, detect_credential
    except ImportError as e:
        raise SigstoreRefused("the sigstore library is not installed", hint="pip install 'spokeshave[sigstore]'") from e
    try:
        found = detect_credential()
    except IdentityError as e:
        raise SigstoreRefused(f"no identity token from this CI job: {e}") from e
    if found is None:
        raise SigstoreRefused("no identity token: this is no CI job that offers one", hint="Give one by --identity-token.")
    return str(found)


def _trusted_root(text: str, file: Path) -> str:
    try:
        return json.dumps(json.loads(text)["trustedRoot"])
    except (ValueError, KeyError, TypeError) as e:
        raise SigstoreRefused(f"{file.name}: not a client trust configuration: {e!r}") from e

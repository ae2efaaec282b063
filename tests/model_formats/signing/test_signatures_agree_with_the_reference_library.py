"""The reference implementation of the OpenSSF Model Signing format runs here; both sides read what the other writes."""

import warnings
from datetime import UTC, datetime

import pytest

from model_formats.package import unpack
from model_formats.signing.signature import (
    CertificateSigner,
    KeySigner,
    PublisherPolicy,
    PublisherUntrusted,
    sign_package,
    verify_package,
)
from tests.samples.certificates import Authority
from tests.samples.model_folder import WEIGHTS, packed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import model_signing

NOW = datetime(2026, 6, 1, tzinfo=UTC)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def package(tmp_path):
    layout, index = packed(tmp_path)
    unpack(layout, index, tmp_path / "out")
    return layout, index, tmp_path / "out"


def test_it_verifies_what_we_sign_with_a_key(package, tmp_path):
    layout, index, folder = package
    signer = KeySigner.generate()
    (tmp_path / "model.sig").write_bytes(sign_package(layout, index, signer))
    (tmp_path / "key.pub").write_text(signer.public_pem)
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub")
    verifier.verify(folder, tmp_path / "model.sig")
    (folder / WEIGHTS).write_bytes(b"other")
    with pytest.raises(ValueError):
        verifier.verify(folder, tmp_path / "model.sig")


def test_it_verifies_what_we_sign_with_a_certificate(package, tmp_path):
    layout, index, folder = package
    authority = Authority(NOW)
    key, certificate = authority.issue("publisher@example.org")
    (tmp_path / "model.sig").write_bytes(sign_package(layout, index, CertificateSigner(key, [certificate])))
    (tmp_path / "root.pem").write_text(authority.pem)
    verifier = model_signing.verifying.Config().use_certificate_verifier(certificate_chain=[tmp_path / "root.pem"])
    verifier.verify(folder, tmp_path / "model.sig")


def test_we_verify_what_it_signs_with_a_key(package, tmp_path):
    layout, index, folder = package
    signer = KeySigner.generate()
    signer.save(tmp_path / "key.pem")
    model_signing.signing.Config().use_elliptic_key_signer(private_key=tmp_path / "key.pem").sign(folder, tmp_path / "model.sig")
    publisher = verify_package(layout, index, (tmp_path / "model.sig").read_bytes(), signer.policy, NOW)
    assert publisher.kind == "key"


def test_we_verify_what_it_signs_with_a_certificate(package, tmp_path):
    layout, index, folder = package
    authority = Authority(NOW)
    key, certificate = authority.issue("publisher@example.org")
    authority.write(tmp_path, key, certificate)
    config = model_signing.signing.Config().use_certificate_signer(
        private_key=tmp_path / "key.pem", signing_certificate=tmp_path / "leaf.pem", certificate_chain=[tmp_path / "root.pem"]
    )
    config.sign(folder, tmp_path / "model.sig")
    policy = PublisherPolicy(certificates=(authority.rule("publisher@example.org"),))
    publisher = verify_package(layout, index, (tmp_path / "model.sig").read_bytes(), policy, NOW)
    assert (publisher.kind, publisher.name) == ("certificate", "publisher@example.org")


def test_an_exemption_inside_the_signed_payload_does_not_help(package, tmp_path):
    """The format lets a signer exempt paths from the check; a package must be covered whole."""
    layout, index, folder = package
    signer = KeySigner.generate()
    signer.save(tmp_path / "key.pem")
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=tmp_path / "key.pem")
    config.set_hashing_config(model_signing.hashing.Config().set_ignored_paths(paths=[folder / "variants"]))
    config.sign(folder, tmp_path / "model.sig")
    with pytest.raises(PublisherUntrusted, match=r"variants/onnx-fp32/model\.onnx is not what was signed"):
        verify_package(layout, index, (tmp_path / "model.sig").read_bytes(), signer.policy, NOW)


@pytest.mark.parametrize("fault", ["expired", "not yet valid", "web server"])
def test_certificates_that_it_accepts_and_we_refuse(package, tmp_path, fault):
    layout, index, folder = package
    authority = Authority(NOW)
    key, certificate = authority.issue("publisher@example.org", fault=fault)
    bundle = sign_package(layout, index, CertificateSigner(key, [certificate]))
    (tmp_path / "model.sig").write_bytes(bundle)
    (tmp_path / "root.pem").write_text(authority.pem)
    model_signing.verifying.Config().use_certificate_verifier(certificate_chain=[tmp_path / "root.pem"]).verify(
        folder, tmp_path / "model.sig"
    )
    with pytest.raises(PublisherUntrusted):
        verify_package(layout, index, bundle, PublisherPolicy(certificates=(authority.rule("publisher@example.org"),)), NOW)

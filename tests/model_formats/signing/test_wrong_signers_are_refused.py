import base64
import json
from datetime import UTC, datetime

import pytest

from model_formats.package import SIGNATURE, attach
from model_formats.signing.signature import (
    CertificateSigner,
    KeySigner,
    PublisherPolicy,
    PublisherUntrusted,
    SigningKeyInvalid,
    sign_package,
    verify_package,
)
from tests.samples.certificates import Authority
from tests.samples.model_folder import packed

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def package(tmp_path):
    return packed(tmp_path)


def test_a_signature_is_good_for_its_own_package_only(package, tmp_path):
    layout, index = package
    signer = KeySigner.generate()
    bundle = sign_package(layout, index, signer)
    assert verify_package(layout, index, bundle, signer.policy, NOW).kind == "key"
    other, other_index = packed(tmp_path / "other", version=2)
    with pytest.raises(PublisherUntrusted, match="is not what was signed"):
        verify_package(other, other_index, bundle, signer.policy, NOW)


def test_a_signature_travels_as_a_referrer_of_the_index(package):
    layout, index = package
    attach(layout, index, SIGNATURE, sign_package(layout, index, KeySigner.generate()))
    assert len(layout.referrers(index, SIGNATURE)) == 1


def test_an_empty_policy_trusts_nobody(package):
    layout, index = package
    with pytest.raises(PublisherUntrusted, match="not among the 0 keys"):
        verify_package(layout, index, sign_package(layout, index, KeySigner.generate()), PublisherPolicy(), NOW)


def test_another_publishers_key_is_refused(package):
    layout, index = package
    with pytest.raises(PublisherUntrusted, match="not among the 1 keys"):
        verify_package(layout, index, sign_package(layout, index, KeySigner.generate()), KeySigner.generate().policy, NOW)


def test_a_bundle_of_the_older_form_carries_the_key_itself_and_is_believed_only_for_a_key_of_the_policy(package):
    layout, index = package
    signer, other = KeySigner.generate(), KeySigner.generate()
    page = json.loads(sign_package(layout, index, signer))
    page["verificationMaterial"]["publicKey"] = {"rawBytes": base64.b64encode(signer.public_pem.encode()).decode()}
    bundle = json.dumps(page).encode()
    assert verify_package(layout, index, bundle, signer.policy, NOW).kind == "key"
    with pytest.raises(PublisherUntrusted, match="not among the 1 keys"):
        verify_package(layout, index, bundle, other.policy, NOW)
    for odd in ("", "AAAA", base64.b64encode(b"-----BEGIN PUBLIC KEY-----").decode()):
        page["verificationMaterial"]["publicKey"] = {"rawBytes": odd}
        with pytest.raises(PublisherUntrusted):
            verify_package(layout, index, json.dumps(page).encode(), signer.policy, NOW)


def test_policies_add_up_and_survive_json(package):
    layout, index = package
    one, two = KeySigner.generate(), KeySigner.generate()
    both = PublisherPolicy.from_json((one.policy | two.policy).plain)
    for signer in (one, two):
        verify_package(layout, index, sign_package(layout, index, signer), both, NOW)
    with pytest.raises(PublisherUntrusted, match="malformed"):
        PublisherPolicy.from_json({"keys": [], "anyone": True})


def edit(bundle, change):
    page = json.loads(bundle)
    change(page)
    return json.dumps(page).encode()


def tamper_payload(page):
    payload = json.loads(base64.b64decode(page["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"][0]["digest"] = "0" * 64
    page["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


FAULTS = {
    "payload changed": tamper_payload,
    "two signatures": lambda p: p["dsseEnvelope"]["signatures"].append(p["dsseEnvelope"]["signatures"][0]),
    "no signature": lambda p: p["dsseEnvelope"]["signatures"].clear(),
    "other payload type": lambda p: p["dsseEnvelope"].update(payloadType="text/plain"),
    "other bundle version": lambda p: p.update(mediaType="application/vnd.dev.sigstore.bundle.v0.1+json"),
    "two kinds of signer": lambda p: p["verificationMaterial"].update(x509CertificateChain={"certificates": [{}]}),
    "no signer": lambda p: p["verificationMaterial"].pop("publicKey"),
    "signer is a list": lambda p: p.update(verificationMaterial=[]),
    "not base64": lambda p: p["dsseEnvelope"].update(payload="!!"),
    "signature of another": lambda p: p["dsseEnvelope"]["signatures"][0].update(sig=base64.b64encode(b"x" * 70).decode()),
}


@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS.keys())
def test_a_changed_bundle_is_refused(package, change):
    layout, index = package
    signer = KeySigner.generate()
    with pytest.raises(PublisherUntrusted):
        verify_package(layout, index, edit(sign_package(layout, index, signer), change), signer.policy, NOW)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff", b" " * (5 << 20)])
def test_what_is_no_bundle_is_refused(package, data):
    layout, index = package
    with pytest.raises(PublisherUntrusted):
        verify_package(layout, index, data, KeySigner.generate().policy, NOW)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("expired", "expired on"),
        ("not yet valid", "not valid before"),
        ("web server", "not for signing code"),
        ("no purpose", "for"),
    ],
)
def test_a_certificate_is_refused_for_its_fault(package, fault, said):
    layout, index = package
    authority = Authority(NOW)
    key, certificate = authority.issue("ml@example.org", fault=fault)
    policy = PublisherPolicy(certificates=(authority.rule("ml@example.org"),))
    with pytest.raises(PublisherUntrusted, match=said):
        verify_package(layout, index, sign_package(layout, index, CertificateSigner(key, [certificate])), policy, NOW)


def test_a_certificate_counts_only_for_its_name_and_under_the_policys_root(package):
    layout, index = package
    authority, stranger = Authority(NOW), Authority(NOW, "Another root")
    key, certificate = authority.issue("ml@example.org")
    bundle = sign_package(layout, index, CertificateSigner(key, [certificate]))
    good = PublisherPolicy(certificates=(authority.rule("ml@example.org"),))
    assert verify_package(layout, index, bundle, good, NOW).name == "ml@example.org"
    for rule, said in (
        (authority.rule("ml@example.com"), "may not release"),
        (stranger.rule("ml@example.org"), "does not lead to a root"),
    ):
        with pytest.raises(PublisherUntrusted, match=said):
            verify_package(layout, index, bundle, PublisherPolicy(certificates=(rule,)), NOW)


def test_a_chain_may_have_an_intermediate_but_not_a_publisher_as_authority(package):
    layout, index = package
    root = Authority(NOW)
    middle = Authority(NOW, "Middle", under=root)
    key, leaf = middle.issue("ml@example.org")
    policy = PublisherPolicy(certificates=(root.rule("ml@example.org"),))
    chain = [leaf, middle.certificate]
    verify_package(layout, index, sign_package(layout, index, CertificateSigner(key, chain)), policy, NOW)
    with pytest.raises(PublisherUntrusted, match="does not lead to a root"):
        verify_package(layout, index, sign_package(layout, index, CertificateSigner(key, [leaf])), policy, NOW)
    publisher = Authority(NOW)
    publisher.key, publisher.certificate = root.issue("someone@example.org")
    publisher.name = publisher.certificate.subject
    key, leaf = publisher.issue("ml@example.org")
    forged = sign_package(layout, index, CertificateSigner(key, [leaf, publisher.certificate]))
    with pytest.raises(PublisherUntrusted, match="does not lead to a root"):
        verify_package(layout, index, forged, policy, NOW)


def test_a_key_that_cannot_sign_is_named(tmp_path):
    (tmp_path / "key.pem").write_text("nonsense")
    with pytest.raises(SigningKeyInvalid, match=r"key\.pem"):
        KeySigner.load(tmp_path / "key.pem")
    with pytest.raises(SigningKeyInvalid, match=r"none\.pem"):
        KeySigner.load(tmp_path / "none.pem")


def test_a_saved_key_is_for_its_owner_only(tmp_path):
    KeySigner.generate().save(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    KeySigner.load(tmp_path / "key.pem")

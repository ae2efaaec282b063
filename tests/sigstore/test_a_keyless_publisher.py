"""A publisher without a key of its own: signed with the sigstore library at a private instance, checked by the hub with it."""

import base64
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from hub.services.releases import ReleaseRequest, propose_release
from model_formats.core.types import ModelRef
from model_formats.package import ImageLayout
from model_formats.signing.publisher_policy import PublisherPolicy, SigstoreRule
from model_formats.signing.signature import KeySigner, PublisherUntrusted, sign_package, verify_package
from model_formats.signing.sigstore import SigstoreRefused, SigstoreSigner
from tests.samples.model_folder import packed
from tests.sigstore.instance import Instance, Oidc

WHO = "ml@example.org"


@pytest.fixture(scope="module")
def instance():
    with Instance() as running:
        yield running


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("package"))


def signed_by(instance, package, who=WHO):
    layout, index = package
    return sign_package(layout, index, SigstoreSigner(instance.oidc.token(who), trust_config=instance.trust_config()))


@pytest.fixture(scope="module")
def bundle(instance, package):
    return signed_by(instance, package)


def policy(instance, *, identity=WHO, issuer=None):
    rule = SigstoreRule(identity=identity, issuer=issuer or instance.oidc.issuer, trusted_root=instance.trusted_root())
    return PublisherPolicy(sigstore=(rule,))


def check(package, bundle, rules):
    layout, index = package
    return verify_package(layout, index, bundle, rules, datetime.now(UTC))


def test_a_signature_at_the_instance_is_confirmed_in_full(instance, package, bundle):
    publisher = check(package, bundle, policy(instance))
    assert (publisher.kind, publisher.name, publisher.proof) == ("sigstore", WHO, "full")


def test_another_identity_is_refused(instance, package, bundle):
    with pytest.raises(PublisherUntrusted, match=r"ml@example.org by .* may not release"):
        check(package, bundle, policy(instance, identity="boss@example.org"))
    with pytest.raises(PublisherUntrusted, match="may not release"):
        check(package, signed_by(instance, package, "mallory@example.org"), policy(instance))


def test_another_issuer_is_refused(package, instance, bundle):
    with pytest.raises(PublisherUntrusted, match="may not release"):
        check(package, bundle, policy(instance, issuer="https://accounts.elsewhere.example"))


def test_an_instance_that_says_the_same_but_is_not_ours_is_refused(instance, package):
    with Instance(instance.oidc.issuer) as impostor:
        forged = signed_by(impostor, package)
    with pytest.raises(PublisherUntrusted, match="Sigstore does not confirm"):
        check(package, forged, policy(instance))


def test_a_log_entry_after_the_certificates_end_is_refused(instance, package):
    instance.rekor.late = timedelta(hours=1)
    try:
        late = signed_by(instance, package)
    finally:
        instance.rekor.late = timedelta(0)
    with pytest.raises(PublisherUntrusted, match="Sigstore does not confirm"):
        check(package, late, policy(instance))


def entry(page):
    return page["verificationMaterial"]["tlogEntries"][0]


def other_signature(page):
    """By another key over the same payload."""
    page["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(b"0" * 70).decode()


def other_body(page):
    body = json.loads(base64.b64decode(entry(page)["canonicalizedBody"]))
    body["spec"]["payloadHash"]["value"] = "0" * 64
    entry(page)["canonicalizedBody"] = base64.b64encode(json.dumps(body).encode()).decode()


UNSIGNED = "a - 1\n6\nAAAA\n\n— a AAAAAAAA\n"
TAMPERED = {
    "another signature": other_signature,
    "another body of the log entry": other_body,
    "another time": lambda p: entry(p).update(integratedTime=str(int(entry(p)["integratedTime"]) + 1)),
    "no promise": lambda p: entry(p).pop("inclusionPromise"),
    "no proof": lambda p: entry(p).pop("inclusionProof"),
    "another place in the tree": lambda p: entry(p)["inclusionProof"].update(logIndex="1"),
    "another tree": lambda p: entry(p)["inclusionProof"].update(rootHash=base64.b64encode(b"0" * 32).decode()),
    "a checkpoint nobody signed": lambda p: entry(p)["inclusionProof"]["checkpoint"].update(envelope=UNSIGNED),
    "no log entry": lambda p: p["verificationMaterial"].update(tlogEntries=[]),
}


@pytest.mark.parametrize("fault", TAMPERED)
def test_a_tampered_bundle_is_refused(instance, package, bundle, fault):
    page = json.loads(bundle)
    TAMPERED[fault](page)
    with pytest.raises(PublisherUntrusted):
        check(package, json.dumps(page).encode(), policy(instance))


def test_a_bundle_of_another_package_is_refused(instance, bundle, tmp_path):
    with pytest.raises(PublisherUntrusted, match="not what was signed"):
        check(packed(tmp_path, version=2), bundle, policy(instance))


def test_a_token_of_another_issuer_gets_no_certificate(instance, package):
    layout, index = package
    forged = Oidc(instance.oidc.issuer).token(WHO)
    with pytest.raises(SigstoreRefused):
        sign_package(layout, index, SigstoreSigner(forged, trust_config=instance.trust_config()))


def ask(house, instance, *, identity=WHO):
    house.approver()
    index, _ = house.push(1, name=identity)
    layout = ImageLayout(house.folder / f"{identity}-digits-1" / "layout")
    bundle = sign_package(layout, index, SigstoreSigner(instance.oidc.token(WHO), trust_config=instance.trust_config()))
    signature = house.hub.registry.put_blob("digits", bundle)
    return ReleaseRequest(ModelRef("digits", 1), index, signature, policy(instance, identity=identity), (), ())


def test_the_hub_proposes_what_an_identity_has_signed(house, instance):
    request = ask(house, instance)
    proposal = propose_release(house.hub, request, "ann")
    assert house.sign(proposal, "model-digits").complete
    with pytest.raises(PublisherUntrusted):
        propose_release(house.hub, ask(house, instance, identity="boss@example.org"), "ann")


def test_a_hub_that_cannot_check_in_full_refuses_to_release(house, instance, monkeypatch):
    request = ask(house, instance)
    monkeypatch.setitem(sys.modules, "sigstore.errors", None)
    with pytest.raises(PublisherUntrusted, match="needs the sigstore library"):
        propose_release(house.hub, request, "ann")


def test_a_key_signature_does_not_pass_for_an_identity(instance, package):
    layout, index = package
    with pytest.raises(PublisherUntrusted):
        check(package, sign_package(layout, index, KeySigner.generate()), policy(instance))

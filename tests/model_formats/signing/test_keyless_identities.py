"""A certificate as Fulcio issues it, from an authority of our own; the log and the transparency proofs are missing on purpose."""

import base64
import json
import sys
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from model_formats.signing.publisher_policy import PublisherPolicy, SigstoreRule
from model_formats.signing.signature import KeySigner, PublisherUntrusted, sign_package, verify_package
from tests.samples.certificates import Authority
from tests.samples.model_folder import packed

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ISSUER = "https://accounts.example.org"
GOOD = SigstoreRule(identity="ml@example.org", issuer=ISSUER)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def signed(tmp_path):
    layout, index = packed(tmp_path)
    text = ISSUER.encode()
    issuer = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), b"\x0c" + bytes([len(text)]) + text)
    key, leaf = Authority(NOW).issue("ml@example.org", extension=issuer)
    page = json.loads(sign_package(layout, index, KeySigner(key)))
    der = base64.b64encode(leaf.public_bytes(serialization.Encoding.DER)).decode()
    page["verificationMaterial"] = {"certificate": {"rawBytes": der}, "tlogEntries": [{"logIndex": "1"}]}  # of no log
    return layout, index, page


def verify(signed, rule):
    layout, index, page = signed
    return verify_package(layout, index, json.dumps(page).encode(), PublisherPolicy(sigstore=(rule,)), NOW)


def test_without_the_library_the_identity_is_checked_and_the_rest_is_left_to_the_release(signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigstore.errors", None)
    publisher = verify(signed, GOOD)
    assert (publisher.kind, publisher.name, publisher.proof) == ("sigstore", "ml@example.org", "released")


def test_with_the_library_a_signature_that_no_log_has_seen_is_refused(signed):
    with pytest.raises(PublisherUntrusted, match="Sigstore does not confirm"):
        verify(signed, GOOD)


def test_a_signature_without_a_log_entry_is_refused_even_where_the_library_is_not_installed(signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigstore.errors", None)
    for entries in ([], None):
        signed[2]["verificationMaterial"]["tlogEntries"] = entries
        with pytest.raises(PublisherUntrusted, match="no log has seen"):
            verify(signed, GOOD)


@pytest.mark.parametrize(
    "rule",
    [
        SigstoreRule(identity="other@example.org", issuer=ISSUER),
        SigstoreRule(identity="ml@example.org", issuer="https://evil.example"),
    ],
)
def test_another_identity_or_issuer_is_refused(signed, rule, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigstore.errors", None)
    with pytest.raises(PublisherUntrusted, match="may not release"):
        verify(signed, rule)


def test_a_signature_by_another_key_is_refused(signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigstore.errors", None)
    layout, index, page = signed
    other = json.loads(sign_package(layout, index, KeySigner.generate()))
    page["dsseEnvelope"] = other["dsseEnvelope"]
    with pytest.raises(PublisherUntrusted, match="does not verify"):
        verify(signed, GOOD)

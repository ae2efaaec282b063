"""Keys on disk, and documents under signature."""

import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from model_formats.core.document import DocumentRefused
from model_formats.core.errors import SpokeshaveError
from sync.core.types import Reason
from sync.protocol.messages import Status
from sync.trust.documents import DenyList, Freshness, ReleaseTerms
from sync.trust.dsse import seal, unseal
from sync.trust.errors import EnvelopeRefused, KeyMissing
from sync.trust.keys import KeyFileInvalid, device_signer, key_of_pem, load_signer, pem_of, role_signer, save_signer

KEYS = [CryptoSigner.generate_ed25519() for _ in range(3)]
STATUS = Status(site="dubai", spoke="main", online=True, time=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("make", [role_signer, device_signer])
def test_a_key_comes_back_from_disk_readable_by_its_owner_alone(tmp_path, make) -> None:
    signer = make()
    save_signer(tmp_path / "keys" / "a.pem", signer)
    assert (tmp_path / "keys" / "a.pem").stat().st_mode & 0o777 == 0o600
    again = load_signer(tmp_path / "keys" / "a.pem")
    assert again.public_key.keyid == signer.public_key.keyid
    assert key_of_pem(pem_of(signer.public_key).encode()).keyid == signer.public_key.keyid


def test_a_key_is_never_overwritten(tmp_path) -> None:
    save_signer(tmp_path / "a.pem", role_signer())
    with pytest.raises(KeyFileInvalid, match="exists"):
        save_signer(tmp_path / "a.pem", role_signer())


def test_a_key_that_lies_open_is_not_used(tmp_path) -> None:
    save_signer(tmp_path / "a.pem", role_signer())
    (tmp_path / "a.pem").chmod(0o644)
    with pytest.raises(KeyFileInvalid, match="read by others"):
        load_signer(tmp_path / "a.pem")


def test_a_key_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(KeyMissing, match=r"a\.pem"):
        load_signer(tmp_path / "a.pem")


@pytest.mark.parametrize(
    "make", [lambda: rsa.generate_private_key(65537, 2048), lambda: ec.generate_private_key(ec.SECP384R1()), lambda: None]
)
def test_keys_of_other_kinds_are_refused(tmp_path, make) -> None:
    private = make()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) if private else b"junk"
    (tmp_path / "a.pem").write_bytes(pem)
    (tmp_path / "a.pem").chmod(0o600)
    with pytest.raises(KeyFileInvalid):
        load_signer(tmp_path / "a.pem")
    if private:
        with pytest.raises(KeyFileInvalid):
            key_of_pem(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_two_of_three_is_two_different_keys() -> None:
    publics = [k.public_key for k in KEYS]
    assert unseal(seal(STATUS, KEYS[0], KEYS[2]), publics, Status, 2) == STATUS
    with pytest.raises(EnvelopeRefused, match="2 of the 3"):
        unseal(seal(STATUS, KEYS[0], KEYS[0]), publics, Status, 2)
    with pytest.raises(EnvelopeRefused):
        unseal(seal(STATUS, KEYS[0]), publics, Status, 2)


@pytest.mark.parametrize("keys", [(), (KEYS[1].public_key,)])
def test_no_key_and_the_wrong_key_open_nothing(keys) -> None:
    with pytest.raises(EnvelopeRefused):
        unseal(seal(STATUS, KEYS[0]), keys, Status)


def test_one_signature_twice_in_the_list_is_refused() -> None:
    envelope = json.loads(seal(STATUS, KEYS[0]))
    envelope["signatures"] *= 2
    with pytest.raises(EnvelopeRefused, match="DSSE"):
        unseal(json.dumps(envelope).encode(), [KEYS[0].public_key], Status)


@settings(max_examples=60)
@given(st.integers(min_value=0), st.binary(min_size=1, max_size=8))
def test_no_change_of_an_envelope_passes_unseen(at: int, junk: bytes) -> None:
    good = seal(STATUS, KEYS[0])
    at %= len(good)
    bad = good[:at] + junk + good[at + len(junk) :]
    try:
        found = unseal(bad, [KEYS[0].public_key], Status, reason=Reason.REPORT_UNTRUSTED)
    except SpokeshaveError:
        return
    assert found == STATUS


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=4)))
def test_deny_lists_have_one_byte_form(contents) -> None:
    from model_formats.core.types import digest_of

    deny = DenyList(digests=tuple(digest_of(c) for c in contents))
    assert DenyList.parse(deny.canonical()) == deny


@pytest.mark.parametrize(
    "custom", [None, [], "x", {}, {"zones": ["me"]}, {"signature": {"digest": "sha256:0", "length": 1}, "zones": []}]
)
def test_terms_that_are_not_terms_are_refused(custom) -> None:
    with pytest.raises(DocumentRefused):
        ReleaseTerms.of(custom)


@pytest.mark.parametrize(
    "fields",
    [{"issued": "yesterday"}, {"issued": 5}, {"lane": "online"}, [], {"issued": "2026-01-01T00:00:00Z", "lane": "pigeon"}],
)
def test_a_timestamp_that_lies_about_its_form_is_refused(fields) -> None:
    from tuf.api.metadata import Timestamp

    with pytest.raises(DocumentRefused):
        Freshness.of(Timestamp(unrecognized_fields={Freshness.FIELD: fields}))

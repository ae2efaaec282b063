"""From a code to an identity, by files and by hand; and every way in which it must not work."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.identity.ca import DeviceCA
from provisioning.identity.enrol import (
    Code,
    CodeMalformed,
    CodeRefused,
    EnrolmentGrant,
    EnrolmentRequest,
    GrantRefused,
    Invite,
    RenewalRequest,
    admit,
    begin,
    finish,
    grant,
    invite,
    renew,
)
from provisioning.identity.identity import HubAddress, Identity, NotEnrolled, WrongCertificate, device_csr, device_key
from sync.core.types import SpokeId
from sync.trust.keys import device_signer

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
FRANKFURT = SpokeId("frankfurt")
HUB = HubAddress(url="https://hub.example:8443", broker_host="hub.example", broker_port=8883)


@pytest.fixture
def ca(tmp_path: Path) -> DeviceCA:
    return DeviceCA.create(tmp_path / "ca", now=NOW)


@pytest.fixture
def code_and_record(ca: DeviceCA) -> tuple[str, Invite]:
    return invite(FRANKFURT, zone="eu", regime="gdpr", ca=ca, now=NOW)


def answer(request: EnrolmentRequest, record: Invite, ca: DeviceCA) -> EnrolmentGrant:
    admit(request, record, used=False, now=NOW)
    return grant(request, record, ca, hub=HUB, tuf_root=b'{"signed": {}}', now=NOW)


def test_a_code_becomes_an_identity(tmp_path: Path, ca: DeviceCA, code_and_record: tuple[str, Invite]) -> None:
    code, record = code_and_record
    request = EnrolmentRequest.parse(begin(tmp_path / "home", code).canonical())
    sent = EnrolmentGrant.parse(answer(request, record, ca).canonical())
    identity = finish(tmp_path / "home", sent)
    assert (identity.spoke, identity.zone, identity.regime) == (FRANKFURT, "eu", "gdpr")
    assert (identity.hub_url, identity.broker_host, identity.broker_port) == (HUB.url, "hub.example", 8883)
    assert identity.tuf_root == b'{"signed": {}}'
    assert Identity.load(tmp_path / "home") == identity
    assert identity.signer().public_key.verify_signature(identity.signer().sign(b"x"), b"x") is None
    assert (tmp_path / "home/identity/device.key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "home/identity/enrolment.json").exists()


def test_a_person_may_type_the_code_in_capitals_and_groups(code_and_record: tuple[str, Invite]) -> None:
    code, _ = code_and_record
    assert Code.parse(" " + code.upper()[:20] + " \n" + code.upper()[20:]) == Code.parse(code)


@given(st.text(max_size=100))
def test_any_other_text_is_not_a_code(text: str) -> None:
    with pytest.raises(CodeMalformed):
        Code.parse(text)


def test_the_hub_does_not_keep_the_code(code_and_record: tuple[str, Invite]) -> None:
    code, record = code_and_record
    assert Code.parse(code).secret.encode() not in record.canonical()


def test_the_request_does_not_reveal_the_code(tmp_path: Path, code_and_record: tuple[str, Invite]) -> None:
    code, record = code_and_record
    request = begin(tmp_path / "home", code).canonical()
    assert Code.parse(code).secret.encode() not in request
    assert record.key.encode() not in request


def test_a_used_code_is_refused(tmp_path: Path, code_and_record: tuple[str, Invite]) -> None:
    code, record = code_and_record
    with pytest.raises(CodeRefused, match="used before"):
        admit(begin(tmp_path / "home", code), record, used=True, now=NOW)


def test_an_expired_code_is_refused_with_its_date(tmp_path: Path, code_and_record: tuple[str, Invite]) -> None:
    code, record = code_and_record
    with pytest.raises(CodeRefused, match="expired at 2026-11-22 12:00 UTC"):
        admit(begin(tmp_path / "home", code), record, used=False, now=NOW + timedelta(hours=24))


def test_an_unknown_code_is_refused(tmp_path: Path, code_and_record: tuple[str, Invite], ca: DeviceCA) -> None:
    code, _ = code_and_record
    _, other = invite(FRANKFURT, zone="eu", regime="gdpr", ca=ca, now=NOW)
    request = begin(tmp_path / "home", code)
    for record in (None, other):
        with pytest.raises(CodeRefused, match="no enrolment code"):
            admit(request, record, used=False, now=NOW)


def test_a_request_with_another_key_under_the_same_code_is_refused(tmp_path: Path, code_and_record: tuple[str, Invite]) -> None:
    """Somebody who saw the request on the stick puts his own key into it."""
    code, record = code_and_record
    request = begin(tmp_path / "home", code).replace(csr=device_csr(device_signer()).decode())
    with pytest.raises(CodeRefused, match="holder"):
        admit(request, record, used=False, now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"zone": "me"},
        {"regime": "none"},
        {"tuf_root": "{}"},
        {"hub": HUB.replace(url="https://evil.example")},
        {"proof": ""},
    ],
)
def test_a_grant_that_was_changed_on_the_stick_is_refused(
    tmp_path: Path, ca: DeviceCA, code_and_record: tuple[str, Invite], change: dict[str, object]
) -> None:
    code, record = code_and_record
    sent = answer(begin(tmp_path / "home", code), record, ca).replace(**change)
    with pytest.raises(GrantRefused, match="changed on the way"):
        finish(tmp_path / "home", sent)
    with pytest.raises(NotEnrolled):
        Identity.load(tmp_path / "home")


def test_a_grant_by_another_authority_is_refused_even_with_the_right_proof(
    tmp_path: Path, code_and_record: tuple[str, Invite]
) -> None:
    code, record = code_and_record
    other = DeviceCA.create(tmp_path / "other", now=NOW)
    with pytest.raises(GrantRefused, match="another device CA"):
        finish(tmp_path / "home", answer(begin(tmp_path / "home", code), record, other))


def test_a_grant_for_another_spoke_is_refused(tmp_path: Path, ca: DeviceCA, code_and_record: tuple[str, Invite]) -> None:
    code, record = code_and_record
    begin(tmp_path / "home", code)
    with pytest.raises(WrongCertificate):
        finish(tmp_path / "home", answer(begin(tmp_path / "elsewhere", code), record, ca))


def test_a_grant_nobody_asked_for_is_refused(tmp_path: Path, ca: DeviceCA, code_and_record: tuple[str, Invite]) -> None:
    code, record = code_and_record
    sent = answer(begin(tmp_path / "home", code), record, ca)
    with pytest.raises(GrantRefused, match="asked for nothing"):
        finish(tmp_path / "elsewhere", sent)


def test_enrolling_again_with_a_new_code_keeps_the_key(tmp_path: Path, ca: DeviceCA) -> None:
    keys = set()
    for _ in range(2):
        code, record = invite(FRANKFURT, zone="eu", regime="gdpr", ca=ca, now=NOW)
        identity = finish(tmp_path / "home", answer(begin(tmp_path / "home", code), record, ca))
        keys.add(identity.public_key)
    assert len(keys) == 1


def test_a_home_that_is_a_spoke_does_not_become_another(
    tmp_path: Path, ca: DeviceCA, code_and_record: tuple[str, Invite]
) -> None:
    code, record = code_and_record
    finish(tmp_path / "home", answer(begin(tmp_path / "home", code), record, ca))
    code, record = invite(SpokeId("dubai"), zone="me", regime="ae-health", ca=ca, now=NOW)
    with pytest.raises(GrantRefused, match=r"this home is frankfurt/main; the code is for dubai/main"):
        finish(tmp_path / "home", answer(begin(tmp_path / "home", code), record, ca))
    held = Identity.load(tmp_path / "home")
    assert (held.spoke, held.regime) == (FRANKFURT, "gdpr")


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(
    tmp_path: Path, ca: DeviceCA, code_and_record: tuple[str, Invite]
) -> None:
    code, record = code_and_record
    identity = finish(tmp_path / "home", answer(begin(tmp_path / "home", code), record, ca))
    assert not identity.renewal_due(NOW + timedelta(days=59))
    later = NOW + timedelta(days=61)
    assert identity.renewal_due(later)
    request = RenewalRequest(csr=device_csr(device_key(tmp_path / "home")).decode())
    identity.replace_certificate(renew(request, identity.certificate, ca, spoke=FRANKFURT, now=later).certificate.encode())
    assert not identity.renewal_due(later)
    assert identity.expires() == later + timedelta(days=90)


def test_a_renewal_for_another_key_is_refused_by_both_ends(
    tmp_path: Path, ca: DeviceCA, code_and_record: tuple[str, Invite]
) -> None:
    code, record = code_and_record
    identity = finish(tmp_path / "home", answer(begin(tmp_path / "home", code), record, ca))
    other = device_csr(device_signer())
    with pytest.raises(CodeRefused, match="another key"):
        renew(RenewalRequest(csr=other.decode()), identity.certificate, ca, spoke=FRANKFURT, now=NOW)
    with pytest.raises(WrongCertificate):
        identity.replace_certificate(ca.sign_csr(other, FRANKFURT, now=NOW))

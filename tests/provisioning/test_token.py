"""Device tokens: whose, and until when."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.identity.ca import DeviceCA
from provisioning.identity.enrol import begin, finish, grant, invite
from provisioning.identity.identity import HubAddress, Identity
from provisioning.identity.token import TokenRefused, mint_token, verify_token
from sync.core.types import SpokeId

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HUB = HubAddress(url="https://hub.example", broker_host="hub.example", broker_port=8883)


def enrolled(folder: Path, name: str) -> Identity:
    ca = DeviceCA.create(folder / f"ca-{name}", now=NOW)
    code, record = invite(SpokeId(name), zone="eu", regime="gdpr", ca=ca, now=NOW)
    return finish(folder / name, grant(begin(folder / name, code), record, ca, hub=HUB, tuf_root=b"{}", now=NOW))


@pytest.fixture
def dubai(tmp_path: Path) -> Identity:
    return enrolled(tmp_path, "dubai")


def test_a_token_names_its_spoke(dubai: Identity) -> None:
    asked: list[SpokeId] = []

    def certificate_of(spoke: SpokeId) -> bytes:
        asked.append(spoke)
        return dubai.certificate

    assert verify_token(mint_token(dubai, now=NOW), certificate_of, now=NOW) == SpokeId("dubai") == asked[0]


def test_a_token_of_a_revoked_spoke_is_refused(dubai: Identity) -> None:
    with pytest.raises(TokenRefused, match="not enrolled"):
        verify_token(mint_token(dubai, now=NOW), lambda spoke: None, now=NOW)


@pytest.mark.parametrize("minutes", [-6, 5, 60])
def test_a_token_out_of_time_is_refused(dubai: Identity, minutes: int) -> None:
    token = mint_token(dubai, now=NOW)
    with pytest.raises(TokenRefused, match="in time"):
        verify_token(token, lambda spoke: dubai.certificate, now=NOW + timedelta(minutes=minutes))


def test_a_token_that_claims_a_long_life_is_refused(dubai: Identity) -> None:
    with pytest.raises(TokenRefused, match="in time"):
        verify_token(mint_token(dubai, now=NOW, life_s=86_400), lambda spoke: dubai.certificate, now=NOW)


def test_a_spoke_cannot_speak_for_another(dubai: Identity, tmp_path: Path) -> None:
    frankfurt = enrolled(tmp_path, "frankfurt")
    envelope = json.loads(base64.urlsafe_b64decode(mint_token(dubai, now=NOW)))
    payload = json.loads(base64.b64decode(envelope["payload"])) | {"site": "frankfurt"}
    envelope["payload"] = base64.b64encode(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).decode()
    forged = base64.urlsafe_b64encode(json.dumps(envelope).encode()).decode()
    with pytest.raises(TokenRefused):
        verify_token(forged, lambda spoke: frankfurt.certificate, now=NOW)


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda b: base64.urlsafe_b64encode(b).decode())))
def test_anything_else_is_refused_and_nothing_else_raised(text: str) -> None:
    with pytest.raises(TokenRefused):
        verify_token(text, lambda spoke: None, now=NOW)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures", "a"]), x),
    )
)
def test_any_json_is_refused_and_nothing_else_raised(value: object) -> None:
    with pytest.raises(TokenRefused):
        verify_token(base64.urlsafe_b64encode(json.dumps(value).encode()).decode(), lambda spoke: None, now=NOW)

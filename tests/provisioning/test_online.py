"""Enrolment and renewal over HTTPS, against a small hub of the real rules behind a real TLS server."""

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from model_formats.core.errors import SpokeshaveError
from provisioning.identity.ca import DeviceCA
from provisioning.identity.enrol import (
    CodeRefused,
    EnrolmentRequest,
    GrantRefused,
    Invite,
    RenewalRequest,
    admit,
    grant,
    invite,
    renew,
)
from provisioning.identity.identity import HubAddress, Identity, NotEnrolled
from provisioning.identity.online import HubUnreachable, enrol_online, hub_client, renew_online
from provisioning.identity.token import verify_token
from sync.core.clock import SystemClock
from sync.core.types import SpokeId

FRANKFURT = SpokeId("frankfurt")


class MiniHub(http.server.ThreadingHTTPServer):
    """Enrolment and nothing else."""

    daemon_threads = True

    def __init__(self, folder: Path, ca: DeviceCA, names: list[str], *, age: timedelta = timedelta(0)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ca = ca
        self.invites: dict[str, Invite] = {}
        self.used: set[str] = set()
        self.certificates: dict[SpokeId, bytes] = {}
        tls = ca.issue_server(folder, names, now=datetime.now(UTC) - age)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}"

    def code(self) -> str:
        code, record = invite(FRANKFURT, zone="eu", regime="gdpr", ca=self.ca, now=datetime.now(UTC))
        self.invites[record.id] = record
        return code

    def enrol(self, body: bytes) -> bytes:
        request = EnrolmentRequest.parse(body)
        record = self.invites.get(request.invite)
        admit(request, record, used=request.invite in self.used, now=datetime.now(UTC))
        assert record is not None
        address = HubAddress(url=self.url, broker_host="127.0.0.1", broker_port=8883)
        answer = grant(request, record, self.ca, hub=address, tuf_root=b"{}", now=datetime.now(UTC))
        self.used.add(request.invite)
        self.certificates[SpokeId(record.site, record.spoke)] = answer.certificate.encode()
        return answer.canonical()

    def renew(self, body: bytes, token: str) -> bytes:
        spoke = verify_token(token, self.certificates.get, now=datetime.now(UTC))
        request = RenewalRequest.parse(body)
        return renew(request, self.certificates[spoke], self.ca, spoke=spoke, now=datetime.now(UTC)).canonical()

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    server: MiniHub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        known = self.path == "/api/v1/ca"
        self._answer(200 if known else 404, self.server.ca.certificate if known else b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            if self.path == "/api/v1/enrolments/renew":
                self._answer(200, self.server.renew(body, self.headers["authorization"].removeprefix("Bearer ")))
            else:
                self._answer(200, self.server.enrol(body))
        except SpokeshaveError as e:
            self._answer(e.http, json.dumps({"code": e.code, "detail": e.message}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def served(hub: MiniHub) -> Iterator[MiniHub]:
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture
def hub(tmp_path: Path, session_ca: DeviceCA) -> Iterator[MiniHub]:
    yield from served(MiniHub(tmp_path / "tls", session_ca, ["127.0.0.1"]))


def test_a_code_and_an_address_are_enough(hub: MiniHub, tmp_path: Path) -> None:
    identity = enrol_online(tmp_path / "home", hub.url + "/", hub.code())
    assert identity == Identity.load(tmp_path / "home")
    assert (identity.spoke, identity.hub_url) == (FRANKFURT, hub.url)


def test_a_code_used_twice_is_refused_with_the_hubs_words(hub: MiniHub, tmp_path: Path) -> None:
    code = hub.code()
    enrol_online(tmp_path / "home", hub.url, code)
    with pytest.raises(CodeRefused, match="used before"):
        enrol_online(tmp_path / "second", hub.url, code)
    with pytest.raises(NotEnrolled):
        Identity.load(tmp_path / "second")


def test_a_hub_with_another_ca_learns_nothing(hub: MiniHub, tmp_path: Path) -> None:
    other = DeviceCA.create(tmp_path / "other", now=datetime.now(UTC))
    code, _ = invite(FRANKFURT, zone="eu", regime="gdpr", ca=other, now=datetime.now(UTC))
    with pytest.raises(GrantRefused, match="another device CA"):
        enrol_online(tmp_path / "home", hub.url, code)
    assert not hub.used
    assert not (tmp_path / "home").exists()


def test_a_server_that_shows_the_true_ca_but_has_no_certificate_of_it_is_not_believed(
    hub: MiniHub, tmp_path: Path, session_ca: DeviceCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CA's certificate is public: anyone can show it. The request goes only to who has a server certificate from it."""
    monkeypatch.setattr("provisioning.identity.online._post.retry.sleep", lambda seconds: None)
    stranger = DeviceCA.create(tmp_path / "stranger", now=datetime.now(UTC))
    middle = MiniHub(tmp_path / "middle", stranger, ["127.0.0.1"])
    middle.ca = session_ca
    for server in served(middle):
        with pytest.raises(HubUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
            enrol_online(tmp_path / "home", server.url, hub.code())


@pytest.mark.parametrize("days", [1000, -1000])
def test_a_wrong_clock_is_the_first_thing_to_look_at(
    tmp_path: Path, session_ca: DeviceCA, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    monkeypatch.setattr("provisioning.identity.online._post.retry.sleep", lambda seconds: None)
    for server in served(MiniHub(tmp_path / "tls", session_ca, ["127.0.0.1"], age=timedelta(days=days))):
        with pytest.raises(HubUnreachable) as caught:
            enrol_online(tmp_path / "home", server.url, server.code())
        assert "clock of this machine" in caught.value.hint


def test_nobody_there_is_said_so(tmp_path: Path, free_port: int, hub: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning.identity.online._ask_ca.retry.sleep", lambda seconds: None)
    with pytest.raises(HubUnreachable, match=str(free_port)):
        enrol_online(tmp_path / "home", f"https://127.0.0.1:{free_port}", hub.code())


def test_a_certificate_is_renewed_with_a_device_token(hub: MiniHub, tmp_path: Path) -> None:
    identity = enrol_online(tmp_path / "home", hub.url, hub.code())
    before = identity.certificate
    renew_online(identity, SystemClock())
    assert identity.certificate != before


def test_a_revoked_spoke_is_not_renewed(hub: MiniHub, tmp_path: Path) -> None:
    identity = enrol_online(tmp_path / "home", hub.url, hub.code())
    hub.certificates.clear()
    with pytest.raises(CodeRefused, match="revoked"):
        renew_online(identity, SystemClock())


def test_the_spokes_client_trusts_the_device_ca_alone_and_shows_a_token(hub: MiniHub, tmp_path: Path) -> None:
    identity = enrol_online(tmp_path / "home", hub.url, hub.code())
    with hub_client(identity, SystemClock()) as client:
        answer = client.get("/api/v1/ca")
        assert answer.status_code == 200
        token = answer.request.headers["authorization"].removeprefix("Bearer ")
        assert verify_token(token, hub.certificates.get, now=datetime.now(UTC)) == FRANKFURT

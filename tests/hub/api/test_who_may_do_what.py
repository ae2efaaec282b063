"""The API through ASGI: roles, problems, tokens. No handler decides, so these tests are about the door."""

import base64
from datetime import timedelta

import httpx
import pytest

from hub.rules.access import Role
from hub.services.releases import deny
from hub.store.tokens import make_token
from provisioning.identity.token import mint_token


@pytest.fixture
def call(app, house):
    """`call(method, path, roles=..., token=..., **kwargs)` -> response."""
    import anyio

    def token_for(roles):
        with house.hub.database.begin() as db:
            return make_token(db, "+".join(roles), frozenset(roles), now=house.hub.now)[1]

    def send(method, path, *, roles=(), token=None, headers=None, **kwargs):
        token = token or (token_for(roles) if roles else None)
        headers = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}

        async def go():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="https://hub") as client:
                return await client.request(method, path, headers=headers, **kwargs)

        return anyio.run(go)

    return send


OPEN = {"/healthz", "/readyz", "/metrics", "/api/v1/ca", "/api/v1/tuf/root.json", "/api/v1/enrolments", "/api/v1/openapi.json"}


def routes(app):
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield (
                method.upper(),
                path.replace("{site}", "a").replace("{name}", "b").replace("{version}", "1").replace("{file}", "root.json"),
            )


def test_every_route_but_the_named_ones_asks_for_a_token(app, call):
    for method, path in routes(app):
        if path in OPEN:
            continue
        answer = call(method, path)
        assert answer.status_code == 401, f"{method} {path}: {answer.status_code} {answer.text}"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "not_authenticated"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_viewer_reads_and_changes_nothing(app, call):
    refused = [(m, p) for m, p in routes(app) if m != "GET" and p not in OPEN and p != "/api/v1/enrolments/renew"]
    bodies = {"json": {}}
    for method, path in refused:
        answer = call(method, path, roles=[Role.VIEWER], **(bodies if method == "POST" else {}))
        assert answer.status_code in (403, 422), f"{method} {path}: {answer.text}"
    assert call("GET", "/api/v1/spokes", roles=[Role.VIEWER]).json() == []
    assert call("GET", "/api/v1/audit", roles=[Role.VIEWER]).status_code == 403
    assert call("GET", "/api/v1/audit/verify", roles=[Role.AUDITOR]).json()["ok"]


def test_a_problem_names_code_message_and_hint(call):
    answer = call("GET", "/api/v1/rollouts/none", roles=[Role.VIEWER])
    assert answer.status_code == 404
    problem = answer.json()
    assert problem["code"] == "rollout_unknown"
    assert problem["detail"] == "there is no rollout none"
    assert "hub rollout list" in problem["hint"]
    assert problem["type"] == "/errors#rollout_unknown"


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/api/v1/rollouts", b"kind: [", "rollout_invalid"),
        ("/api/v1/invites", b'{"spoke": "dubai"}', "api_request_invalid"),
        ("/api/v1/invites", b'{"spoke": "dubai", "zone": "mars", "regime": "gdpr"}', "zone_unknown"),
        ("/api/v1/invites", b'{"spoke": "Du bai", "zone": "me", "regime": "gdpr"}', "operator"),
        ("/api/v1/tokens", b'{"name": "x", "roles": "root"}', "api_request_invalid"),
        ("/api/v1/models/digits", b"{", "api_request_invalid"),
        ("/api/v1/metadata/targets", b'{"data": "%%"}', "api_request_invalid"),
        ("/api/v1/metadata/targets", b'{"data": "bm9uc2Vuc2U="}', "metadata_refused"),
        ("/api/v1/metadata/root", b'{"data": "e30="}', "metadata_refused"),
        ("/api/v1/enrolments", b'{"kind": "nonsense"}', "document_invalid"),
        ("/api/v1/receipts", b"nonsense", "receipts_refused"),
    ],
)
def test_bad_bodies_are_refused_by_name(call, path, body, code):
    answer = call("POST", path, roles=[Role.OPERATOR], content=body, headers={"content-type": "application/json"})
    assert answer.json()["code"] == code, answer.text
    assert 400 <= answer.status_code < 500


def test_a_body_without_a_bound_is_refused_before_it_is_read(call, house):
    answer = call("POST", "/api/v1/rollouts", roles=[Role.OPERATOR], content=b"x", headers={"content-length": str(1 << 30)})
    assert (answer.status_code, answer.json()["code"]) == (413, "api_request_invalid")


def test_a_token_is_made_used_and_revoked(call):
    made = call("POST", "/api/v1/tokens", roles=[Role.OPERATOR], json={"name": "ci", "roles": "viewer"}).json()
    assert call("GET", "/api/v1/spokes", token=made["token"]).status_code == 200
    assert call("DELETE", f"/api/v1/tokens/{made['id']}", roles=[Role.OPERATOR]).status_code == 200
    assert call("GET", "/api/v1/spokes", token=made["token"]).status_code == 401


def test_a_spoke_pulls_what_is_released_for_its_zone_and_nothing_else(call, house, clock):
    dubai, frankfurt = house.enrol("dubai", "me"), house.enrol("frankfurt", "eu", "gdpr")
    index = house.release(1, zones=("me",))
    blob = f"/v2/digits/blobs/{index}"

    def pull(device, path=blob, method="GET"):
        return call(method, path, token=mint_token(device.identity, now=clock.now())).status_code

    assert pull(dubai) == 200
    assert pull(frankfurt) == 401
    assert pull(dubai, "/v2/other/blobs/" + index) == 401
    assert pull(dubai, "/v2/digits/blobs/uploads/", "POST") == 401
    assert call("GET", blob).status_code == 401
    assert call("DELETE", "/api/v1/spokes/dubai/main", roles=[Role.OPERATOR]).json()["revoked"]
    assert pull(dubai) == 401


def test_oci_tools_log_in_with_the_token_as_password(call, house):
    index = house.release(1)
    with house.hub.database.begin() as db:
        token = make_token(db, "ci", frozenset({Role.VIEWER}), now=house.hub.now)[1]
    basic = base64.b64encode(f"anybody:{token}".encode()).decode()
    answer = call("GET", f"/v2/digits/blobs/{index}", headers={"Authorization": f"Basic {basic}"})
    assert answer.status_code == 200
    assert call("GET", "/v2/").headers["www-authenticate"].startswith("Basic")


def test_enrolment_needs_no_token_but_its_code_and_the_code_works_once(call, house, tmp_path):
    from provisioning.identity.enrol import EnrolmentGrant, begin, finish

    order = {"spoke": "dubai", "zone": "me", "regime": "ae-pdpl"}
    code = call("POST", "/api/v1/invites", roles=[Role.OPERATOR], json=order).json()["code"]
    request = begin(tmp_path / "spoke", code)
    answer = call("POST", "/api/v1/enrolments", content=request.canonical())
    assert finish(tmp_path / "spoke", EnrolmentGrant.parse(answer.content)).zone == "me"
    again = call("POST", "/api/v1/enrolments", content=begin(tmp_path / "other", code).canonical())
    assert again.json()["code"] == "enrolment_code_refused"
    assert "used before" in again.json()["detail"]


def test_an_expired_code_is_refused(call, house, clock, tmp_path):
    from provisioning.identity.enrol import begin

    order = {"spoke": "dubai", "zone": "me", "regime": "ae-pdpl", "life_s": 60}
    code = call("POST", "/api/v1/invites", roles=[Role.OPERATOR], json=order).json()["code"]
    clock.advance(61)
    answer = call("POST", "/api/v1/enrolments", content=begin(tmp_path / "spoke", code).canonical())
    assert "expired" in answer.json()["detail"]
    assert clock.now() > house.hub.clock.now() - timedelta(seconds=1)


def test_a_certificate_is_renewed_with_the_spokes_own_token(call, house, clock):
    from provisioning.identity.enrol import RenewalGrant, RenewalRequest
    from provisioning.identity.identity import device_csr

    device = house.enrol("dubai")
    request = RenewalRequest(csr=device_csr(device.identity.signer()).decode())
    token = mint_token(device.identity, now=clock.now())
    answer = call("POST", "/api/v1/enrolments/renew", token=token, content=request.canonical())
    device.identity.replace_certificate(RenewalGrant.parse(answer.content).certificate.encode())
    assert call("POST", "/api/v1/enrolments/renew", roles=[Role.OPERATOR], content=request.canonical()).status_code == 401


def test_ready_and_metrics_tell_the_state(call, house):
    device = house.enrol("dubai")
    device.status()
    index = house.release(1)
    device.commits(index)
    assert call("GET", "/readyz").json() == {"ready": True, "checks": {"database": "ok"}}
    text = call("GET", "/metrics").text
    assert "spokeshave_hub_spokes_online 1" in text
    assert 'spokeshave_hub_serving_spokes{model="digits",version="1",variant="onnx-int8"} 1' in text
    assert "# TYPE spokeshave_hub_block_bytes_total counter" in text


def test_a_denied_version_is_shown_as_denied(call, house):
    index = house.release(1)
    (shown,) = call("GET", "/api/v1/models", roles=[Role.VIEWER]).json()
    assert not shown["denied"]
    assert house.sign(deny(house.hub, [index], "test"), "targets").complete
    (shown,) = call("GET", "/api/v1/models", roles=[Role.VIEWER]).json()
    assert shown["denied"]
    assert call("GET", "/api/v1/models/digits/1", roles=[Role.VIEWER]).json()["denied"]

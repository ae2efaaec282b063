"""Enrolment and renewal over HTTPS, and the client that every other HTTPS call of a spoke uses.

`GET /api/v1/ca` (PEM; no login), `POST /api/v1/enrolments` (EnrolmentRequest -> EnrolmentGrant),
`POST /api/v1/enrolments/renew` (RenewalRequest -> RenewalGrant; device token). Bodies are canonical JSON.
"""

import ssl
from pathlib import Path
from typing import TypeVar

import httpx

from model_formats.core.document import Document
from model_formats.core.errors import HubError
from provisioning.identity.ca import pin_of
from provisioning.identity.enrol import (
    Code,
    CodeRefused,
    EnrolmentGrant,
    GrantRefused,
    RenewalGrant,
    RenewalRequest,
    begin,
    finish,
)
from provisioning.identity.identity import Identity, device_csr
from provisioning.identity.token import DeviceAuth
from sync.core.clock import Clock
from sync.core.retry import retrying
from sync.core.tls import https_context

__all__ = ["HubUnreachable", "enrol_online", "hub_client", "renew_online"]

_LARGEST_BYTES = 2 << 20
_NOT_NOW = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
_CLOCK = "Is the clock of this machine right (`date -u`)? The hub's certificate is not valid at the time that it shows."
_TIMEOUT = httpx.Timeout(10.0)

D = TypeVar("D", bound=Document)


class HubUnreachable(HubError):
    """The hub's HTTPS address does not answer, or not as a hub."""

    code = "hub_unreachable"
    hint = "Is `hub up` running, and is the address right? A spoke that is enrolled goes on serving meanwhile."


def enrol_online(home: Path, url: str, code: str) -> Identity:
    """Enrol with a code. Nothing but the question for its CA is said before the CA has the fingerprint that the code carries.

    Raises CodeMalformed, CodeRefused, GrantRefused, HubUnreachable; each leaves the home ready for another try.
    """
    url = url.rstrip("/")
    pin = Code.parse(code).pin
    ca = _ask_ca(url)
    if pin_of(ca) != pin:
        raise GrantRefused(f"{url} has another device CA than the code names")
    request = begin(home, code)
    with httpx.Client(verify=_context(ca), timeout=_TIMEOUT, trust_env=False) as client:
        return finish(home, _post(client, f"{url}/api/v1/enrolments", request, EnrolmentGrant))


def renew_online(identity: Identity, clock: Clock) -> None:
    """Fetch a new certificate for the key this spoke has. Raises HubUnreachable, CodeRefused, WrongCertificate."""
    request = RenewalRequest(csr=device_csr(identity.signer()).decode())
    with hub_client(identity, clock) as client:
        answer = _post(client, f"{identity.hub_url}/api/v1/enrolments/renew", request, RenewalGrant)
    identity.replace_certificate(answer.certificate.encode())


def hub_client(identity: Identity, clock: Clock) -> httpx.Client:
    """An HTTPS client for the hub: trusts its CA alone, and shows a fresh device token with every request."""
    return httpx.Client(
        base_url=identity.hub_url,
        verify=https_context(identity.tls),
        auth=DeviceAuth(identity, clock),
        timeout=_TIMEOUT,
        trust_env=False,
    )


@retrying(on=(HubUnreachable,), tries=4, seconds=20)
def _ask_ca(url: str) -> bytes:
    try:
        # Unauthenticated on purpose: the answer is believed only when its fingerprint is the one in the code.
        answer = httpx.get(f"{url}/api/v1/ca", verify=False, timeout=_TIMEOUT, trust_env=False)  # noqa: S501
        answer.raise_for_status()
        pin_of(answer.content)
    except (httpx.HTTPError, ValueError) as e:
        raise HubUnreachable(f"{url} does not answer as a hub: {e}") from e
    return answer.content


@retrying(on=(HubUnreachable,), tries=4, seconds=20)
def _post(client: httpx.Client, url: str, body: Document, answer_type: type[D]) -> D:
    try:
        answer = client.post(url, content=body.canonical(), headers={"content-type": "application/json"})
    except httpx.HTTPError as e:
        raise HubUnreachable(f"{url}: {e}", hint=_CLOCK if _out_of_time(e) else None) from e
    if answer.status_code >= 500 or len(answer.content) > _LARGEST_BYTES:
        raise HubUnreachable(f"{url} answers {answer.status_code}")
    if answer.status_code >= 400:
        raise CodeRefused(_detail(answer))
    return answer_type.parse(answer.content)


def _out_of_time(error: BaseException) -> bool:
    """Whether a certificate was not yet, or no longer, valid by the clock of this machine."""
    while not isinstance(error, ssl.SSLCertVerificationError):
        following = error.__cause__ or error.__context__
        if following is None:
            return False
        error = following
    return error.verify_code in _NOT_NOW


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the hub refuses with status {answer.status_code}"


def _context(ca: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca.decode())
    return context

"""Short-lived bearer tokens that a spoke signs with its device key: how it proves itself over HTTPS.

A token is the base64url (RFC 4648, section 5) of a DSSE envelope around a `DeviceToken`. Stateless: within its minutes it may be
used again, by its holder, over TLS, for reading what the spoke may read anyway.
"""

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Generator
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Literal

import httpx

from model_formats.core.document import Document, DocumentRefused
from model_formats.core.errors import RefusedError
from model_formats.core.types import AwareDatetime, Name, matching
from provisioning.identity.identity import Identity
from sync.core.clock import Clock
from sync.core.types import SpokeId
from sync.trust.dsse import seal, unseal
from sync.trust.errors import TrustRefused
from sync.trust.keys import key_of_certificate

__all__ = ["DeviceAuth", "DeviceToken", "TokenRefused", "mint_token", "verify_token"]

LONGEST = timedelta(minutes=15)
"""A token that claims a longer life is refused."""
SKEW = timedelta(minutes=5)
"""How far the spoke's clock may be ahead."""


class TokenRefused(RefusedError):
    """A device token that is not from an enrolled spoke, not in time, or not a token."""

    code = "device_token_refused"
    http = 401
    hint = "Check the spoke's clock, and whether it is still enrolled (`hub spoke show`)."


class DeviceToken(Document):
    """Who asks, and until when."""

    max_bytes: ClassVar[int] = 4096

    kind: Literal["device-token"] = "device-token"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    issued: AwareDatetime
    expires: AwareDatetime
    nonce: Annotated[str, matching("^[0-9a-f]{32}$")]


def mint_token(identity: Identity, *, now: datetime, life_s: int = 300) -> str:
    """A token for `Authorization: Bearer`."""
    who = identity.spoke
    token = DeviceToken(
        site=who.site, spoke=who.spoke, issued=now, expires=now + timedelta(seconds=life_s), nonce=secrets.token_hex(16)
    )
    return base64.urlsafe_b64encode(seal(token, identity.signer())).decode()


def verify_token(token: str, certificate_of: Callable[[SpokeId], bytes | None], *, now: datetime) -> SpokeId:
    """Whose token this is. `certificate_of` gives the spoke's present certificate (PEM); None when unknown or revoked.

    1. It is an envelope, and says whose it is. 2. That spoke is enrolled. 3. Its key signed the envelope. 4. It is in time.
    Raises TokenRefused.
    """
    # 1.
    if len(token) > 16_384:
        raise TokenRefused("the device token is too long")
    try:
        envelope = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        claimed = _claimed(envelope)
        # 2.
        certificate = certificate_of(claimed)
        if certificate is None:
            raise TokenRefused(f"{claimed} is not enrolled here, or was revoked")
        # 3.
        found = unseal(envelope, [key_of_certificate(certificate)], DeviceToken)
    except (ValueError, KeyError, TypeError, binascii.Error, TrustRefused, DocumentRefused) as e:
        raise TokenRefused(f"not a device token: {e}") from e
    # 4.
    if found.expires - found.issued > LONGEST or not found.issued - SKEW <= now < found.expires:
        raise TokenRefused(f"the device token of {claimed} is not in time: good from {found.issued} to {found.expires}")
    return SpokeId(found.site, found.spoke)


def _claimed(envelope: bytes) -> SpokeId:
    payload = base64.b64decode(json.loads(envelope)["payload"], validate=True)
    token = DeviceToken.parse(payload)
    return SpokeId(token.site, token.spoke)


class DeviceAuth(httpx.Auth):
    """Shows a device token with every request; a new one when a minute is left. httpx drops it on redirects to another host."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity, self._clock = identity, clock
        self._token = ""
        self._until: float = 0.0

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See httpx."""
        if self._clock.monotonic() >= self._until:
            self._token = mint_token(self._identity, now=self._clock.now())
            self._until = self._clock.monotonic() + 240
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request

"""Enrolment, both ends: a one-time code becomes a certificate and the hub's addresses.

A code is `<id>-<secret>-<pin>`. The secret proves the spoke to the hub and the hub to the spoke (HMAC, both ways) and is itself
never sent; the pin is the fingerprint of the device CA, so that the first contact is authenticated too (as `kubeadm join`).

Hub side, pure: `invite` makes a code and the record to keep, `admit` judges a request, `grant` answers it.
Spoke side: `begin` makes key and request, `finish` checks the grant and writes the identity. `enrol_online` (in `online.py`) is
both over HTTPS; carried as files they are the same documents.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document
from model_formats.core.errors import OperatorError, RefusedError
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime, Name, matching
from provisioning.identity.ca import DeviceCA, pin_of
from provisioning.identity.identity import HubAddress, Identity, IdentityDocument, device_csr, device_key, enrolled_as, store
from sync.core.types import Regime, SpokeId
from sync.trust.keys import key_of_certificate

__all__ = [
    "Code",
    "CodeMalformed",
    "CodeRefused",
    "EnrolmentGrant",
    "EnrolmentRequest",
    "GrantRefused",
    "HubAddress",
    "Invite",
    "RenewalGrant",
    "RenewalRequest",
    "admit",
    "begin",
    "finish",
    "grant",
    "invite",
    "renew",
]

Hex = Annotated[str, matching("^[0-9a-f]{64}$")]
Pem = Annotated[str, Meta(max_length=16_384)]


class CodeMalformed(OperatorError):
    """Text that is not an enrolment code."""

    code = "enrolment_code_malformed"
    hint = "Copy the whole code that `hub spoke invite` printed: three groups with - between them."


class CodeRefused(RefusedError):
    """The hub does not take this code: unknown, used, expired, or the request does not come from its holder."""

    code = "enrolment_code_refused"
    hint = "Ask the hub's operator for a new code: `hub spoke invite`."


class GrantRefused(RefusedError):
    """An answer that does not come from the hub that gave the code, or answers another request."""

    code = "enrolment_grant_refused"
    hint = "Ask the hub's operator whether the code is from this hub; somebody may stand between."


# ---- documents --------------------------------------------------------------------------------------------------------------


class Invite(Document):
    """What the hub keeps of a code: a key derived from its secret. Whether it was used is a column of the hub's table."""

    kind: Literal["invite"] = "invite"
    schema_: Literal[1] = 1
    id: Annotated[str, matching("^[a-z2-7]{8}$")]
    key: Hex
    site: Name
    spoke: Name
    zone: Name
    regime: Regime
    expires: AwareDatetime


class EnrolmentRequest(Document):
    """From a spoke: a certificate request, bound to an invite by a proof that does not reveal the code."""

    max_bytes: ClassVar[int] = 64 * 1024

    kind: Literal["enrolment-request"] = "enrolment-request"
    schema_: Literal[1] = 1
    invite: Annotated[str, matching("^[a-z2-7]{8}$")]
    csr: Pem
    proof: Hex
    """HMAC-SHA256 of `csr` by the key of the invite."""


class EnrolmentGrant(Document):
    """From the hub: all that a spoke needs to begin, with a proof by the invite's key over all the rest."""

    kind: Literal["enrolment-grant"] = "enrolment-grant"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    zone: Name
    regime: Regime
    hub: HubAddress
    certificate: Pem
    ca: Pem
    tuf_root: Annotated[str, Meta(max_length=700_000)]
    """The TUF root metadata, as text."""
    proof: Annotated[str, matching("^([0-9a-f]{64})?$")] = ""


class RenewalRequest(Document):
    """From an enrolled spoke, with its device token: a certificate request for the key it has."""

    max_bytes: ClassVar[int] = 64 * 1024

    kind: Literal["renewal-request"] = "renewal-request"
    schema_: Literal[1] = 1
    csr: Pem


class RenewalGrant(Document):
    """From the hub: the new certificate."""

    kind: Literal["renewal-grant"] = "renewal-grant"
    schema_: Literal[1] = 1
    certificate: Pem


class _Pending(Document):
    """What a spoke remembers between request and grant (mode 0600)."""

    kind: Literal["enrolment-pending"] = "enrolment-pending"
    schema_: Literal[1] = 1
    invite: str
    key: Hex
    pin: str


@dataclass(frozen=True, slots=True)
class Code:
    """An enrolment code, taken apart."""

    id: str
    secret: str
    pin: str

    @classmethod
    def parse(cls, text: str) -> "Code":
        """Read a code as a person typed it (case and spaces do not matter). Raises CodeMalformed."""
        parts = "".join(text.lower().split()).split("-")
        if [len(part) for part in parts] != [8, 26, 32] or not set("".join(parts)) <= set("abcdefghijklmnopqrstuvwxyz234567"):
            raise CodeMalformed("that is not an enrolment code")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.id}-{self.secret}-{self.pin}"

    @property
    def key(self) -> str:
        """The key that both ends prove with, hexadecimal; the secret does not follow from it."""
        return hashlib.sha256(b"spokeshave enrolment v1\0" + self.secret.encode()).hexdigest()


# ---- the hub's side -----------------------------------------------------------------------------------------------------------


def invite(
    spoke: SpokeId, *, zone: str, regime: Regime, ca: DeviceCA, now: datetime, life: timedelta = timedelta(hours=24)
) -> tuple[str, Invite]:
    """A one-time code for a person to carry, and the record that the hub keeps of it."""
    code = Code(_random_text(5), _random_text(16), ca.pin)
    record = Invite(id=code.id, key=code.key, site=spoke.site, spoke=spoke.spoke, zone=zone, regime=regime, expires=now + life)
    return str(code), record


def admit(request: EnrolmentRequest, invite: Invite | None, *, used: bool, now: datetime) -> None:
    """Judge a request against its invite. Raises CodeRefused.

    `used`: whether another request used the code before. The same request again (same CSR: its answer was lost on the way) may be
    let through by the caller, since only the holder of that key gains from the grant.
    """
    if invite is None or invite.id != request.invite:
        raise CodeRefused(f"no enrolment code {request.invite} was given out here")
    if not hmac.compare_digest(request.proof, _proof(invite.key, request.csr.encode())):
        raise CodeRefused(f"the request does not come from the holder of code {invite.id}")
    if used:
        raise CodeRefused(f"enrolment code {invite.id} was used before")
    if now >= invite.expires:
        raise CodeRefused(f"enrolment code {invite.id} expired at {invite.expires:%Y-%m-%d %H:%M} UTC")


def grant(
    request: EnrolmentRequest,
    invite: Invite,
    ca: DeviceCA,
    *,
    hub: HubAddress,
    tuf_root: bytes,
    now: datetime,
    life: timedelta = timedelta(days=90),
) -> EnrolmentGrant:
    """Sign the request and say where things are. After `admit`; mark the invite used in the same transaction.

    Raises CsrRefused. Keep `certificate`: reports and tokens of this spoke are checked with its key.
    """
    spoke = SpokeId(invite.site, invite.spoke)
    answer = EnrolmentGrant(
        site=invite.site,
        spoke=invite.spoke,
        zone=invite.zone,
        regime=invite.regime,
        hub=hub,
        certificate=ca.sign_csr(request.csr.encode(), spoke, now=now, life=life).decode(),
        ca=ca.certificate.decode(),
        tuf_root=tuf_root.decode(),
    )
    return answer.replace(proof=_proof(invite.key, answer.canonical()))


def renew(
    request: RenewalRequest, current: bytes, ca: DeviceCA, *, spoke: SpokeId, now: datetime, life: timedelta = timedelta(days=90)
) -> RenewalGrant:
    """A new certificate for the key that the spoke has. The caller has checked its token. Raises CsrRefused, CodeRefused."""
    certificate = ca.sign_csr(request.csr.encode(), spoke, now=now, life=life)
    if key_of_certificate(certificate).keyid != key_of_certificate(current).keyid:
        raise CodeRefused(f"{spoke} asks to renew with another key than it was enrolled with", hint="Enrol it again.")
    return RenewalGrant(certificate=certificate.decode())


# ---- the spoke's side ---------------------------------------------------------------------------------------------------------


def begin(home: Path, code: str) -> EnrolmentRequest:
    """Make (or find) the device key, and a request for this code; `finish` needs the same home. Raises CodeMalformed."""
    parsed = Code.parse(code)
    csr = device_csr(device_key(home)).decode()
    pending = _Pending(invite=parsed.id, key=parsed.key, pin=parsed.pin)
    atomic_write(_pending_path(home), pending.canonical(), mode=0o600)
    return EnrolmentRequest(invite=parsed.id, csr=csr, proof=_proof(parsed.key, csr.encode()))


def finish(home: Path, grant: EnrolmentGrant) -> Identity:
    """Check the grant against what `begin` remembered, then write the identity.

    1. It is proved with the key of our code: it comes from the hub that gave the code, unchanged.
    2. Its CA has the fingerprint that the code carries.
    3. Its certificate is for our key (checked in `identity.store`).
    4. A home that is a spoke stays that spoke: its rows, adapters and log are that site's. Enrolling it again is allowed.
    """
    path = _pending_path(home)
    if not path.exists():
        raise GrantRefused("this spoke has asked for nothing", hint="Run `spoke enrol` with a code first.")
    pending = _Pending.parse(path.read_bytes())
    # 1.
    unproved = grant.replace(proof="")
    if not hmac.compare_digest(grant.proof, _proof(pending.key, unproved.canonical())):
        raise GrantRefused(f"the grant was not made for enrolment code {pending.invite}, or was changed on the way")
    # 2.
    if pin_of(grant.ca.encode()) != pending.pin:
        raise GrantRefused("the grant comes with another device CA than the code names")
    # 4.
    held, granted = enrolled_as(home), SpokeId(grant.site, grant.spoke)
    if held not in (None, granted):
        raise GrantRefused(
            f"this home is {held}; the code is for {granted}",
            hint="One home is one spoke: give the other a folder of its own (`--home`), and ask for a new code.",
        )
    # 3.
    document = IdentityDocument(site=grant.site, spoke=grant.spoke, zone=grant.zone, regime=grant.regime, hub=grant.hub)
    identity = store(
        home, document, certificate=grant.certificate.encode(), ca=grant.ca.encode(), tuf_root=grant.tuf_root.encode()
    )
    path.unlink()
    return identity


def _pending_path(home: Path) -> Path:
    return home / "identity" / "enrolment.json"


def _proof(key: str, data: bytes) -> str:
    return hmac.new(bytes.fromhex(key), data, hashlib.sha256).hexdigest()


def _random_text(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower()

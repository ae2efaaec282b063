"""Enrolment, both ends. Signatures first; the body follows within the hour.

Hub: `invite()` makes a code and the record to keep; `admit()` checks a request against the record; `grant()` answers it.
Spoke: `begin()` makes key and request; `finish()` checks the grant and writes the identity; `enrol_online()` does both over HTTPS.
HTTPS: `GET /api/v1/ca` (PEM, no login) and `POST /api/v1/enrolments` (EnrolmentRequest -> EnrolmentGrant, canonical JSON).
"""

from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from model_formats.document import Document, Value
from model_formats.types import Name
from provisioning.ca import DeviceCA
from provisioning.identity import Identity
from sync.types import Regime, SpokeId

__all__ = [
    "EnrolmentGrant",
    "EnrolmentRequest",
    "HubAddress",
    "Invite",
    "admit",
    "begin",
    "enrol_online",
    "finish",
    "grant",
    "invite",
]


class HubAddress(Value):
    """Where a spoke finds its hub."""

    url: str
    """HTTPS base address."""
    broker_host: str
    broker_port: int


class Invite(Document):
    """What the hub keeps of a code: never the code itself. Whether it was used is the hub's own column."""

    kind: Literal["invite"] = "invite"
    schema_: Literal[1] = Field(1, alias="schema")
    id: str
    key: str
    site: Name
    spoke: Name
    zone: Name
    regime: Regime
    expires: AwareDatetime


class EnrolmentRequest(Document):
    """From a spoke: a CSR, bound to an invite by a proof that does not reveal the code."""

    max_bytes: ClassVar[int] = 64 * 1024
    kind: Literal["enrolment-request"] = "enrolment-request"
    schema_: Literal[1] = Field(1, alias="schema")
    invite: str
    csr: str
    proof: str


class EnrolmentGrant(Document):
    """From the hub: all that a spoke needs to begin, with a proof by the invite's key."""

    kind: Literal["enrolment-grant"] = "enrolment-grant"
    schema_: Literal[1] = Field(1, alias="schema")
    site: Name
    spoke: Name
    zone: Name
    regime: Regime
    hub: HubAddress
    certificate: str
    ca: str
    tuf_root: str
    proof: str = ""


def invite(
    spoke: SpokeId, *, zone: str, regime: Regime, ca: DeviceCA, now: datetime, life: timedelta = timedelta(hours=24)
) -> tuple[str, Invite]:
    """A one-time code for a person to carry, and the record that the hub keeps."""
    raise NotImplementedError


def admit(request: EnrolmentRequest, invite: Invite | None, *, used: bool, now: datetime) -> None:
    """Check a request against its invite. Raises CodeRefused: unknown, used, expired, or not from the holder of the code."""
    raise NotImplementedError


def grant(
    request: EnrolmentRequest, invite: Invite, ca: DeviceCA, *, hub: HubAddress, tuf_root: bytes, now: datetime
) -> EnrolmentGrant:
    """Sign the CSR and say where things are. Call `admit` first, and mark the invite used in the same transaction."""
    raise NotImplementedError


def begin(home: Path, code: str) -> EnrolmentRequest:
    """Make (or find) the device key and a request for this code."""
    raise NotImplementedError


def finish(home: Path, grant: EnrolmentGrant) -> Identity:
    """Check the grant against the code of `begin` and write the identity. Raises GrantRefused."""
    raise NotImplementedError


def enrol_online(home: Path, url: str, code: str) -> Identity:
    """Enrol over HTTPS: the CA is checked against the code's pin before anything is said."""
    raise NotImplementedError

"""Enrolment at the hub: makes codes, admits spokes that bring one, revokes spokes."""

from datetime import timedelta

from cryptography import x509

from hub.context import HubContext
from hub.rules.audit_action import AuditAction
from hub.services.directives import SpokeUnknown, refresh_directive
from hub.store.audit import append_audit
from hub.store.invites import add_invite, find_invite, spend_invite
from hub.store.spokes import add_spoke, enrolled_zones, find_spoke, renewed_certificate, revoke_spoke
from model_formats.core.errors import OperatorError
from provisioning.identity.enrol import (
    EnrolmentGrant,
    EnrolmentRequest,
    HubAddress,
    RenewalGrant,
    RenewalRequest,
    admit,
    grant,
    invite,
    renew,
)
from sync.core.types import Regime, SpokeId

__all__ = ["ZoneUnknown", "admit_spoke", "allowed_spokes", "certificate_of", "invite_spoke", "renew_spoke", "revoke"]


class ZoneUnknown(OperatorError):
    """A zone that this hub does not serve."""

    code = "zone_unknown"
    hint = "Add it to `zones` in hub.toml, or use one that is there."


def invite_spoke(hub: HubContext, spoke: SpokeId, zone: str, regime: Regime, who: str, *, life_s: float | None = None) -> str:
    """A one-time code for one spoke. Raises ZoneUnknown."""
    if zone not in hub.settings.zones:
        raise ZoneUnknown(f"zone {zone!r} is not among {', '.join(hub.settings.zones)}")
    life = timedelta(seconds=life_s or hub.settings.invite_ttl_s)
    code, kept = invite(spoke, zone=zone, regime=regime, ca=hub.ca, now=hub.clock.now(), life=life)
    with hub.database.begin() as db:
        add_invite(db, kept, now=hub.now)
        append_audit(db, who, AuditAction.SPOKE_INVITE, str(spoke), now=hub.now, details={"zone": zone, "regime": regime})
    return code


def admit_spoke(hub: HubContext, request: EnrolmentRequest, who: str = "enrolment") -> EnrolmentGrant:
    """Answer a request: check the code, sign the key, write the first directive. The code is spent in the same transaction.

    The very same request again gets another answer, for the first may have been lost on the way. Raises CodeRefused.
    """
    with hub.database.begin() as db:
        found = find_invite(db, request.invite)
        kept, used_by = found or (None, None)
        admit(request, kept, used=used_by not in (None, request.digest), now=hub.clock.now())
        if kept is None:  # `admit` refuses unknown codes
            raise SpokeUnknown("no such code")
        spoke = SpokeId(kept.site, kept.spoke)
        answer = grant(request, kept, hub.ca, hub=_address(hub), tuf_root=hub.repository.anchor, now=hub.clock.now())
        spend_invite(db, request.invite, request.digest, now=hub.now)
        serial = _serial(answer.certificate)
        add_spoke(db, spoke, zone=kept.zone, regime=kept.regime, certificate=answer.certificate, serial=serial, now=hub.now)
        refresh_directive(
            db, hub.repository.director, spoke, now=hub.now, life_s=hub.settings.directive_ttl_s, ceiling=hub.ceiling
        )
        append_audit(db, who, AuditAction.SPOKE_ENROL, str(spoke), now=hub.now, details={"serial": serial})
    hub.wake.set()
    return answer


def renew_spoke(hub: HubContext, spoke: SpokeId, request: RenewalRequest) -> RenewalGrant:
    """A new certificate for the key that the spoke has. Raises SpokeUnknown, CodeRefused, CsrRefused."""
    with hub.database.begin() as db:
        held = find_spoke(db, spoke)
        if held is None or held.revoked is not None:
            raise SpokeUnknown(f"{spoke} is not enrolled")
        answer = renew(request, held.certificate.encode(), hub.ca, spoke=spoke, now=hub.clock.now())
        renewed_certificate(db, spoke, answer.certificate, _serial(answer.certificate))
        append_audit(
            db, str(spoke), AuditAction.SPOKE_RENEW, str(spoke), now=hub.now, details={"serial": _serial(answer.certificate)}
        )
    return answer


def revoke(hub: HubContext, spoke: SpokeId, who: str) -> None:
    """End a spoke's access: no topic, no token, and its certificate on the revocation list. Raises SpokeUnknown."""
    with hub.database.begin() as db:
        held = find_spoke(db, spoke)
        if held is None or held.revoked is not None:
            raise SpokeUnknown(f"{spoke} is not enrolled")
        revoke_spoke(db, spoke, now=hub.now)
        append_audit(db, who, AuditAction.SPOKE_REVOKE, str(spoke), now=hub.now, details={"serial": held.serial})
    hub.ca.revoke(held.certificate.encode(), now=hub.clock.now())
    hub.wake.set()


def allowed_spokes(hub: HubContext) -> list[tuple[SpokeId, str]]:
    """All that may use the broker, with their zones."""
    with hub.database.read() as db:
        return enrolled_zones(db)


def certificate_of(hub: HubContext, spoke: SpokeId) -> bytes | None:
    """The current certificate of a spoke, None when unknown or revoked."""
    with hub.database.read() as db:
        held = find_spoke(db, spoke)
    return held.certificate.encode() if held and held.revoked is None else None


def _serial(certificate: str) -> str:
    return f"{x509.load_pem_x509_certificate(certificate.encode()).serial_number:x}"


def _address(hub: HubContext) -> HubAddress:
    if hub.address is None:
        raise OperatorError("the hub does not listen yet, so it cannot tell a spoke where it is", hint="Start it with `hub up`.")
    return hub.address

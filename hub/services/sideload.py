"""Sideload at the hub: writes a bundle for a spoke without a network, and imports its receipts, once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection

from hub.context import HubContext
from hub.rules.audit_action import AuditAction
from hub.rules.rollout_plan import PlanInvalid
from hub.rules.targeting import TargetSpoke, may_have
from hub.services.directives import SpokeUnknown, next_generation, refresh_directive
from hub.services.ingest import Judge, take_egress, take_report
from hub.services.rollout_views import find_released, last_good
from hub.store.audit import append_audit
from hub.store.directives import Assignment, assign, assignments_of
from hub.store.receipts import add_receipts, imported_receipts, receipts_before
from hub.store.spokes import Spoke, find_spoke, saw_serving
from hub.store.versions import VersionRecord
from model_formats.core.types import ModelRef
from sync.core.types import SpokeId
from sync.protocol.messages import DesiredModel, ProbationTerms
from sync.sideload.bundle import Bundle, contents_of, write_bundle
from sync.sideload.receipts import Receipts, check_egress_chain, claimed_spoke, read_receipts
from sync.trust.errors import TrustRefused
from sync.trust.keys import Key, key_of_certificate

__all__ = ["ImportedReceipts", "export", "import_receipts"]


@dataclass(frozen=True, slots=True)
class ImportedReceipts:
    """What a file of receipts brought. `refused`: why, for each message that was not taken (most often: known already)."""

    receipts: Receipts
    reports: int
    egress: int
    refused: tuple[str, ...]


def export(
    hub: HubContext,
    spoke: SpokeId,
    models: Sequence[ModelRef],
    out: Path,
    who: str,
    *,
    days: float = 30,
    encrypt: bool = False,
    soak_s: int = 10,
) -> Bundle:
    """Write a bundle: the spoke's directive with these versions in it, trust metadata, and all blobs of what it should serve.

    `models` empty: what it should serve already. `soak_s`: probation of a version that is new there. Raises SpokeUnknown,
    PlanInvalid (not released, or not for its zone or regime).
    """
    with hub.database.begin() as db:
        row = find_spoke(db, spoke)
        if row is None or row.revoked is not None:
            raise SpokeUnknown(f"{spoke} is not enrolled")
        for ref in models:
            _assign(hub, db, row, find_released(db, ref), ProbationTerms(soak_s=soak_s))
        sealed = refresh_directive(db, hub.repository.director, spoke, now=hub.now, life_s=days * 86400, ceiling=hub.ceiling)
        wanted = [find_released(db, a.ref) for a in assignments_of(db, spoke)]
        details = {"models": ", ".join(str(v.ref) for v in wanted), "generation": str(sealed.generation)}
        append_audit(db, who, AuditAction.BUNDLE_EXPORT, str(spoke), now=hub.now, details=details)
    hub.wake.set()
    with hub.trust() as repository:
        tuf = repository.files("sideload", spoke.site)
    created = hub.clock.now()
    return write_bundle(
        out,
        zone=row.zone,
        tuf=tuf,
        directive=sealed.envelope,
        blobs=hub.registry,
        contents=[blob for v in wanted for blob in contents_of(hub.registry, v.index, v.signature)],
        director=hub.repository.director,
        created=created,
        expires=created + timedelta(days=days),
        recipient=key_of_certificate(row.certificate.encode()) if encrypt else None,
    )


def import_receipts(hub: HubContext, data: bytes, who: str, judge: Judge | None = None) -> ImportedReceipts:
    """Take a file of receipts: each report and record inside is verified as if it had come by the bus.

    Raises ReceiptsRefused, ReceiptsKnown, EnvelopeRefused, SpokeUnknown.
    """
    spoke = claimed_spoke(data)
    with hub.database.begin() as db:
        row = find_spoke(db, spoke)
        if row is None or row.revoked is not None:
            raise SpokeUnknown(f"{spoke} is not enrolled")
        key = key_of_certificate(row.certificate.encode())
        receipts = read_receipts(data, key, spoke, imported=imported_receipts(db, spoke))
        add_receipts(db, spoke, receipts.number, data, now=hub.now)
        saw_serving(db, spoke, receipts.serving, now=hub.now)
        details = {"number": str(receipts.number), "messages": str(len(receipts.messages))}
        append_audit(db, who, AuditAction.RECEIPTS_IMPORT, str(spoke), now=hub.now, details=details)
        refused = _chain_faults(hub, db, key, spoke, receipts)
    taken = {"report": 0, "egress": 0}
    for receipt in receipts.messages:
        try:
            if receipt.kind == "report":
                take_report(hub, spoke, receipt.text.encode())
                taken["report"] += 1
            else:
                take_egress(hub, spoke, receipt.text.encode(), judge)
                taken["egress"] += 1
        except TrustRefused as e:
            refused.append(e.message)
    hub.wake.set()
    return ImportedReceipts(receipts, taken["report"], taken["egress"], tuple(refused))


def _chain_faults(hub: HubContext, db: Connection, key: Key, spoke: SpokeId, receipts: Receipts) -> list[str]:
    """What is wrong with the site's egress log, against the receipts before. Its reports are taken all the same."""
    before = receipts_before(db, spoke, receipts.number)
    try:
        if before is not None:
            check_egress_chain(read_receipts(before, key, spoke), receipts)
    except TrustRefused as e:
        details = {"why": e.message, "reason": str(e.reason)}
        append_audit(db, str(spoke), AuditAction.EGRESS_CONTRADICTS, str(receipts.number), now=hub.now, details=details)
        return [e.message]
    return []


def _assign(hub: HubContext, db: Connection, spoke: Spoke, version: VersionRecord, probation: ProbationTerms) -> None:
    reason = may_have(TargetSpoke(spoke.id, spoke.zone, spoke.regime), version.zones, version.regimes)
    if reason is not None:
        raise PlanInvalid(
            f"{spoke.id} may not have {version.ref}: {reason.value}", hint="Its residency label says where it may go."
        )
    held = next((a for a in assignments_of(db, spoke.id) if a.ref == version.ref), None)
    if held is None:
        terms = DesiredModel(model=version.ref.name, version=version.ref.version, index=version.index, probation=probation)
        good, generation = last_good(db, spoke.id, version.ref), next_generation(db, spoke.id)
        assign(db, Assignment(spoke.id, version.ref, version.index, None, None, terms, hub.now, generation, good))

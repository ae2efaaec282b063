"""Takes what spokes send (reports, outbox records, status), verifies and stores it, and wakes the rollout loop.

Bus handlers only put messages into a bounded queue; one thread takes them out. A refused message changes nothing but one line of
the audit log, written once for a spoke and code in an hour, so that a flood cannot fill it.
"""

import logging
import queue
import threading
from collections.abc import Callable, Collection
from datetime import UTC
from functools import partial

from sqlalchemy import Connection

from hub.context import HubContext
from hub.rules.audit_action import AuditAction
from hub.services.directives import SpokeUnknown
from hub.store.audit import append_audit
from hub.store.egress import add_egress, last_egress
from hub.store.reports import add_report, kept_envelope, received_after
from hub.store.spokes import Spoke, find_spoke, saw_report, saw_status
from model_formats.core.errors import RefusedError, SpokeshaveError
from model_formats.core.log_event import LogEvent
from model_formats.package.read import open_package
from sync.bus.bus import Bus, Message, Subscription
from sync.core.types import Reason, Regime, SpokeId
from sync.protocol import topics
from sync.protocol.egress import EgressRecord
from sync.protocol.messages import EgressReceipt, Report, Status
from sync.trust.dsse import seal, unseal
from sync.trust.errors import ReportRefused
from sync.trust.freshness import answer_time
from sync.trust.keys import Key, fingerprint, key_of_certificate
from sync.trust.verifier import verify_report

__all__ = ["Ingest", "receipt_for", "take_egress", "take_report", "take_status"]

log = logging.getLogger(__name__)
QUEUE = 10_000
LATE, LATE_S = 100, 3600
"""How many reports behind the newest, and for how many seconds, a report may come: two workers share the messages."""

Judge = Callable[[EgressRecord, Regime, EgressRecord | None], str | None]
"""Looks at a record, its site's regime and the record before it: why it is not to be believed, or None."""


def take_report(hub: HubContext, spoke: SpokeId, envelope: bytes) -> Report:
    """Verify and keep one signed report. The very same again (spokes repeat themselves) changes nothing.

    Raises EnvelopeRefused, ReportRefused, DocumentRefused, SpokeUnknown.
    """
    with hub.database.begin() as db:
        held = _enrolled(db, spoke)
        report = verify_report(envelope, _key(held), spoke, 0, hub.clock.now(), files_of=lambda index: _files(hub, index))
        kept = kept_envelope(db, spoke, report.nonce)
        if kept == envelope:
            return report
        if kept is not None or report.sequence <= held.last_sequence - LATE:
            raise ReportRefused(Reason.REPORT_REPLAYED, f"report {report.sequence} of {spoke} was seen before")
        _keep_report(db, held, report, envelope, hub.now)
    hub.wake.set()
    return report


def _keep_report(db: Connection, held: Spoke, report: Report, envelope: bytes, now: float) -> None:
    """One that comes after a later one is put in its place, and does not say what is served now."""
    if report.sequence > held.last_sequence:
        add_report(db, report, envelope, now=now)
        saw_report(db, held.id, report.sequence, report.serving, now=now)
    else:
        after = received_after(db, held.id, report.sequence, since=now - LATE_S)
        add_report(db, report, envelope, now=now if after is None else after)
    details = {"state": report.state.value, "reason": report.reason.value, "sequence": str(report.sequence)}
    append_audit(db, str(held.id), AuditAction.SPOKE_REPORT, f"{report.model}@{report.version}", now=now, details=details)


def take_egress(hub: HubContext, spoke: SpokeId, envelope: bytes, judge: Judge | None = None) -> EgressRecord:
    """Verify and keep one outbox record; what breaks a rule of `judge` is kept apart as quarantined.

    Raises EnvelopeRefused, ReportRefused, DocumentRefused, SpokeUnknown.
    """
    with hub.database.begin() as db:
        held = _enrolled(db, spoke)
        record = unseal(envelope, [_key(held)], EgressRecord, reason=Reason.REPORT_UNTRUSTED)
        if (record.site, record.spoke) != (spoke.site, spoke.spoke):
            raise ReportRefused(Reason.REPORT_UNTRUSTED, f"the record of {record.site}/{record.spoke} came from {spoke}")
        why = judge(record, held.regime, last_egress(db, spoke)) if judge else None
        fresh = add_egress(db, record, envelope, now=hub.now, quarantined=why)
        if fresh and why is not None:
            details = {"kind": record.body.kind, "why": why}
            append_audit(db, str(spoke), AuditAction.EGRESS_QUARANTINE, record.digest, now=hub.now, details=details)
    return record


def receipt_for(hub: HubContext, spoke: SpokeId, record: EgressRecord) -> bytes:
    """The hub's signed word that it has a record. Raises SpokeUnknown."""
    with hub.database.read() as db:
        device = fingerprint(_enrolled(db, spoke).certificate.encode())
    receipt = EgressReceipt(
        site=spoke.site,
        spoke=spoke.spoke,
        device=device,
        sequence=record.sequence,
        record=record.digest,
        time=hub.clock.now().astimezone(UTC).replace(microsecond=0),
    )
    return seal(receipt, hub.repository.director)


def take_status(hub: HubContext, spoke: SpokeId, payload: bytes) -> Status:
    """A hint of life; decides nothing. Raises DocumentRefused, SpokeUnknown."""
    status = Status.parse(payload)
    with hub.database.begin() as db:
        _enrolled(db, spoke)
        saw_status(db, spoke, online=status.online, now=hub.now)
    hub.wake.set()
    return status


class Ingest:
    """Receives the messages of spokes. Several hub processes share them (`$share/hub/...`)."""

    def __init__(self, hub: HubContext, bus: Bus, judge: Judge | None = None) -> None:
        self._hub, self._bus = hub, bus
        self._handlers: dict[str, Callable[[SpokeId, bytes], object]] = {
            "report": partial(take_report, hub),
            "status": self._take_status,
            "egress": partial(self._take_egress, judge),
        }
        self._queue: queue.Queue[Message | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._subscriptions: list[Subscription] = []
        self._told: dict[tuple[SpokeId, str, str], float] = {}
        self.taken = 0
        """Messages taken out of the queue since the start."""

    def start(self) -> None:
        """Subscribe, and work until `stop`."""
        self._thread.start()
        for pattern in _INBOX:
            self._subscriptions.append(self._bus.subscribe(f"$share/hub/{pattern}", self._queue.put))

    def stop(self) -> None:
        """Finish what is in the queue, then end."""
        for subscription in self._subscriptions:
            subscription.cancel()
        self._queue.put(None)
        self._thread.join(10)

    def take(self, message: Message) -> None:
        """Handle one message; refusals are noted, not raised."""
        parts = message.topic.split("/")
        handler = self._handlers.get(parts[5]) if len(parts) > 5 else None
        if handler is None or not message.payload:
            return
        spoke = topics.spoke_of(message.topic)
        try:
            handler(spoke, message.payload)
        except (RefusedError, SpokeUnknown) as e:
            self._note(spoke, e)

    def _take_status(self, spoke: SpokeId, payload: bytes) -> None:
        """Keep it, and answer a spoke that asks for the time."""
        status = take_status(self._hub, spoke, payload)
        if status.online and status.asks_time is not None:
            answer = answer_time(spoke, status.asks_time, self._hub.clock.now(), self._hub.repository.director)
            self._bus.publish(Message(topics.time(spoke), answer))

    def _take_egress(self, judge: Judge | None, spoke: SpokeId, envelope: bytes) -> None:
        """Keep it, and give the spoke a receipt for its log."""
        record = take_egress(self._hub, spoke, envelope, judge)
        self._bus.publish(Message(topics.receipt(spoke), receipt_for(self._hub, spoke, record), qos=1, retain=True))

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            self.taken += 1
            try:
                self.take(message)
            except SpokeshaveError:
                # The database is away; the spoke sends the message again.
                log.exception(LogEvent.INGEST_FAILED, extra={"topic": message.topic})

    def _note(self, spoke: SpokeId, error: SpokeshaveError) -> None:
        reason = str(getattr(error, "reason", ""))
        now, key = self._hub.now, (spoke, error.code, reason)
        if now - self._told.get(key, 0) < 3600:
            return
        self._told[key] = now
        details = {"why": error.message[:500], **({"reason": reason} if reason else {})}
        with self._hub.database.begin() as db:
            append_audit(db, str(spoke), AuditAction.MESSAGE_REFUSED, error.code, now=now, details=details)


_ANY = SpokeId("+", "+")
_INBOX = (topics.report(_ANY), topics.status(_ANY), topics.egress(_ANY, "+"))


def _enrolled(db: Connection, spoke: SpokeId) -> Spoke:
    held = find_spoke(db, spoke)
    if held is None or held.revoked is not None:
        raise SpokeUnknown(f"{spoke} is not enrolled")
    return held


def _key(spoke: Spoke) -> Key:
    return key_of_certificate(spoke.certificate.encode())


def _files(hub: HubContext, index: str) -> Collection[str] | None:
    if not hub.registry.has(index):
        return None
    return {blob.digest for blob in open_package(hub.registry, index).files.values()}

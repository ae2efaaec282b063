"""Offers records to the hub: applies policy and floors, writes the log, then sends."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from model_formats.statistics.reference_profile import ReferenceProfile
from spoke_agent.outbox.egress_log import EgressLog, LogEntry
from spoke_agent.outbox.errors import PolicyInvalid
from spoke_agent.outbox.floors import merge_small, noisy, rounded
from spoke_agent.outbox.policy import EgressRequest, EgressRule, SitePolicy, decide, load_policy, may_tell_counts
from sync.bus.bus import BusDown
from sync.core.clock import Clock
from sync.core.types import Regime, SpokeId
from sync.protocol.egress import (
    MASKED,
    MERGED,
    Body,
    DriftHist,
    EgressRecord,
    FeatureCounts,
    Kind,
    MaskedKey,
    MaskedSum,
    coarse_end,
    coarse_start,
)
from sync.protocol.messages import EgressCeiling, UpdateEvidence

__all__ = ["About", "Asking", "Outbox", "Send"]

Send = Callable[[str, bytes], None]
"""(kind, envelope) -> None: publish on topic `site/<site>/<spoke>/egress/<kind>`, QoS 1. May raise BusDown: it is tried again."""

_NEVER_TWICE: frozenset[Kind] = frozenset({"drift_hist", "rff_mean", *MASKED})


@dataclass(frozen=True, slots=True)
class About:
    """The subject of a record: a version, and the rows between two times (made coarse before they leave)."""

    model: str
    version: int
    index: str
    start: datetime
    end: datetime
    rows: int


@dataclass(frozen=True, slots=True)
class Asking:
    """Further input of the rules."""

    epsilon: float = 0.0
    urgent: bool = False
    features: frozenset[str] = frozenset()
    peers: frozenset[str] | None = None


class Outbox:
    """Default-deny, thread-safe. Every offer is logged, whether it leaves or not, before it leaves."""

    def __init__(
        self,
        home: Path,
        me: SpokeId,
        regime: Regime,
        *,
        clock: Clock,
        send: Send | None = None,
        seal: Callable[[EgressRecord], bytes] | None = None,
        ceiling: Callable[[], EgressCeiling | None] | None = None,
    ) -> None:
        """`seal` signs a record with the device key (DSSE); without it nothing may leave.

        `ceiling` gives the hub's last signed word (Directive.egress); none, or None from it, is the default ceiling. Without
        `send`, messages wait for `waiting()` (sideload).
        """
        self.log = EgressLog(home / "egress.db")
        self._home, self._me, self._regime = home, me, regime
        self._clock, self._send, self._seal, self._ceiling = clock, send, seal, ceiling
        self._lock = threading.RLock()
        self._given: list[int] = []

    def offer(self, body: Body, about: About | None = None, *, urgent: bool = False, epsilon: float = 0.0) -> bool:
        """Ask to let one body out. True: it may leave and is in the log (and sent, or queued until the hub is reached)."""
        return self._let_out(body, about, Asking(epsilon=epsilon, urgent=urgent))

    def offer_masked(self, body: MaskedKey | MaskedSum, about: About, asking: "Asking") -> bool:
        """Ask to let a word in a federated sum out. A key is judged as if its answer left now, but spends nothing yet."""
        return self._let_out(body, about, asking)

    def refuse(self, kind: Kind, about: About, why: EgressRule) -> None:
        """Write down that something stays, for a reason that was found elsewhere."""
        with self._lock:
            self._refuse(kind, about, why)

    def _let_out(self, body: Body, about: About | None, asking: "Asking") -> bool:
        with self._lock:
            allowed = self._record(body, about, asking) is EgressRule.ALLOWED
        if allowed:
            self.flush()
        return allowed

    def offer_counts(self, profile: ReferenceProfile, counts: list[list[int]], about: About) -> bool:
        """Ask to let a window's histograms out, protected as the site's rule says: merged, rounded, or with noise."""
        with self._lock:
            try:
                policy = self.policy()
            except PolicyInvalid:
                return self._refuse("drift_hist", about, EgressRule.POLICY_UNREADABLE)
            rule = policy.rule("drift_hist")
            if rule is None:
                return self._refuse("drift_hist", about, EgressRule.NOT_IN_SITE_POLICY, policy)
            epsilon = policy.epsilon_per_day if "dp" in rule.protect else 0.0
            chosen = [
                i
                for i, f in enumerate(profile.features)
                if (f.source != "confidence" if rule.features is None else f.id in rule.features)
            ]
            features = [
                FeatureCounts(feature=i, counts=cells)
                for i in chosen
                if (cells := _protected(counts[i], policy, epsilon / max(1, len(chosen)))) is not None
            ]
            if not features:
                return self._refuse("drift_hist", about, EgressRule.NOTHING_LEFT_TO_SAY, policy)
        step = 1 if epsilon else policy.round_to
        body = DriftHist(
            edges=profile.edges_digest, rounded_to=step, noise_epsilon_milli=round(epsilon * 1000), features=tuple(features)
        )
        return self.offer(body, about, epsilon=epsilon)

    def policy(self) -> SitePolicy:
        """The site's policy as it is on disk now. Raises PolicyInvalid."""
        return load_policy(self._home, self._me.site, self._regime)

    def told(self, evidence: UpdateEvidence) -> UpdateEvidence:
        """What a report may say of an update: all of it, or nothing that was counted over rows. A closed outbox tells nothing."""
        try:
            whole = may_tell_counts(self.policy(), self._regime)
        except PolicyInvalid:
            whole = False
        return evidence if whole else evidence.without_rows()

    def flush(self) -> int:
        """Send what waits; returns how many left. Call from the loop. Stops quietly when the bus is down."""
        if self._send is None:
            return 0
        done = 0
        with self._lock:
            if self._sealed_off():
                return 0
            for sequence, kind, envelope in self.log.waiting():
                try:
                    self._send(kind, envelope)
                except BusDown:
                    break
                self.log.mark_sent(sequence, self._clock.now())
                done += 1
        return done

    def waiting(self) -> list[tuple[str, bytes]]:
        """Sealed messages that have not left, oldest first: (kind, envelope), for sideload receipts. None while sealed off."""
        with self._lock:
            found = [] if self._sealed_off() else self.log.waiting()
            # Remembered exactly: what is offered between writing the file and `mark_carried` must not count as carried.
            self._given = [sequence for sequence, _, _ in found]
            return [(kind, envelope) for _, kind, envelope in found]

    def mark_carried(self) -> None:
        """What `waiting` gave the last time has been written to a receipt file: it counts as sent, and nothing else does."""
        with self._lock:
            for sequence in self._given:
                self.log.mark_sent(sequence, self._clock.now())
            self._given = []

    def close(self) -> None:
        """Close the log."""
        self.log.close()

    def _sealed_off(self) -> bool:
        """The switch holds for what was allowed before it was turned, too; an unreadable policy counts as sealed."""
        try:
            return self.policy().sovereignty == "sealed"
        except PolicyInvalid:
            return True

    def _record(self, body: Body, about: About | None, asking: Asking) -> EgressRule:
        now = self._clock.now()
        try:
            policy = self.policy()
        except PolicyInvalid:
            self._refuse(body.kind, about, EgressRule.POLICY_UNREADABLE)
            return EgressRule.POLICY_UNREADABLE
        record = self._compose(body, about, policy, now)
        rows, size = about.rows if about else 0, len(record.canonical())
        asked = EgressRequest(body.kind, rows, size, asking.epsilon, asking.urgent, asking.features, asking.peers)
        model = about.model if about else None
        ceiling = (self._ceiling() if self._ceiling else None) or EgressCeiling()
        # Site, hub and regime are asked together, with what has left today: none of them can be passed by alone.
        why = decide(policy, ceiling, self._regime, asked, self.log.day(body.kind, model, now))
        if why is EgressRule.ALLOWED and about and body.kind in _NEVER_TWICE and self._overlaps(body.kind, about):
            why = EgressRule.WINDOW_OVERLAPS
        if why is EgressRule.ALLOWED and self._seal is None:
            why = EgressRule.NOT_SIGNED
        if why is not EgressRule.ALLOWED or self._seal is None:
            self._refuse(body.kind, about, why, policy, size=asked.bytes)
            return why
        # A key says nothing about rows; only the answer spends from the budget.
        spent = 0.0 if body.kind == "masked_key" else asking.epsilon
        entry = self._entry(body.kind, about, why, policy, asked.bytes, record, spent)
        # Logged, with its sealed copy, before a byte is sent: a crash in between sends it later, and never sends what is not in
        # the log.
        self.log.add(entry, record, self._seal(record), about.end.timestamp() if about else None)
        return why

    def _overlaps(self, kind: Kind, about: About) -> bool:
        """No row is counted in two statistics: their difference would speak of a few rows."""
        until = self.log.spoken_until("masked_sum" if kind in MASKED else kind, about.model)
        return until is not None and about.start.timestamp() < until

    def _compose(self, body: Body, about: About | None, policy: SitePolicy, now: datetime) -> EgressRecord:
        sequence, previous = self.log.last_record()
        record = EgressRecord(
            site=self._me.site,
            spoke=self._me.spoke,
            sequence=sequence + 1,
            previous=previous,
            policy=policy.digest,
            model=about.model if about else None,
            version=about.version if about else None,
            index=about.index if about else None,
            start=coarse_start(about.start if about else now),
            end=coarse_end(about.end if about else now),
            body=body,
        )
        return EgressRecord.parse(record.canonical())  # what leaves is what the strict reader accepts, or nothing

    def _refuse(
        self, kind: Kind, about: About | None, why: EgressRule, policy: SitePolicy | None = None, *, size: int = 0
    ) -> bool:
        self.log.add(self._entry(kind, about, why, policy, size, None, 0.0), None, None)
        return False

    def _entry(
        self,
        kind: Kind,
        about: About | None,
        why: EgressRule,
        policy: SitePolicy | None,
        size: int,
        record: EgressRecord | None,
        epsilon: float,
    ) -> LogEntry:
        sequence, previous = self.log.head()
        if policy is not None:
            self.log.keep_policy(policy, self._clock.now())
        return LogEntry(
            sequence=sequence + 1,
            previous=previous,
            time=self._clock.now().replace(microsecond=0),
            asked=kind,
            model=about.model if about else None,
            why=why,
            policy=policy.digest if policy else None,
            rows=about.rows if about else 0,
            bytes=size,
            epsilon_milli=round(epsilon * 1000),
            record=record.digest if record else None,
        )


def _protected(counts: list[int], policy: SitePolicy, epsilon: float) -> tuple[int, ...] | None:
    if epsilon:
        return noisy(counts, epsilon, policy.min_cell)
    cells = merge_small(counts, policy.min_cell)
    return None if cells is None or not any(c != MERGED for c in cells) else rounded(cells, policy.round_to, policy.min_cell)

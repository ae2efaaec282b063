"""Publishes what the broker retains: release metadata and open federated questions in every zone, each spoke's directive.

Level-triggered: `tick` publishes what differs from what this process last published. After a reconnect it publishes all again, so
that a broker that lost its memory is made whole.
"""

import threading

from hub.context import HubContext
from hub.services.directives import refresh_directive
from hub.store.directives import due_directives, retained_directives
from hub.store.federated_questions import QuestionState, list_questions
from hub.store.spokes import enrolled_zones
from model_formats.core.types import digest_of
from sync.bus.bus import Bus, Message
from sync.federated.documents import LONGEST
from sync.protocol import topics

__all__ = ["BrokerPublisher"]


class BrokerPublisher:
    """Publishes what one hub has to say on the bus."""

    def __init__(self, hub: HubContext, bus: Bus) -> None:
        self._hub, self._bus = hub, bus
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()
        bus.on_connect(self.forget)

    def forget(self) -> None:
        """Publish everything again at the next tick."""
        with self._lock:
            self._said.clear()
        self._hub.wake.set()

    def tick(self) -> int:
        """Publish what is new; returns how many messages that were."""
        wanted = {**self._metadata(), **self._directives(), **self._questions()}
        return sum(self._say(topic, data) for topic, data in wanted.items())

    def refresh(self) -> None:
        """Sign anew what grows old: the TUF timestamp, and directives of which half the life is over."""
        with self._hub.trust() as repository:
            repository.refresh_online()
        life = self._hub.settings.directive_ttl_s
        with self._hub.database.begin() as db:
            director = self._hub.repository.director
            enrolled = {spoke for spoke, _ in enrolled_zones(db)}
            # At half of its life, so that a hub may be down for the other half before a directive expires.
            for spoke in due_directives(db, before=self._hub.now - life / 2):
                if spoke in enrolled:
                    refresh_directive(db, director, spoke, now=self._hub.now, life_s=life, ceiling=self._hub.ceiling)

    def _metadata(self) -> dict[str, bytes]:
        with self._hub.trust() as repository:
            files = repository.files()
        return {topics.tuf(zone, name): data for zone in self._hub.settings.zones for name, data in files.items()}

    def _directives(self) -> dict[str, bytes]:
        """By topic; empty (which clears the retained message) for revoked spokes."""
        with self._hub.database.read() as db:
            return {topics.desired(spoke): envelope for spoke, envelope in retained_directives(db)}

    def _questions(self) -> dict[str, bytes]:
        """A question while keys are taken, its cohort while shares are; empty (which clears them) for what is over."""
        with self._hub.database.read() as db:
            kept = list_questions(db, since=self._hub.now - LONGEST.total_seconds())
        found: dict[str, bytes] = {}
        for k in kept:
            zone, name = k.question.zone, k.question.name
            found[topics.question(zone, name)] = k.envelope if k.state is QuestionState.GATHERING else b""
            found[topics.cohort(zone, name)] = (k.cohort or b"") if k.state is QuestionState.SUMMING else b""
        return found

    def _say(self, topic: str, data: bytes) -> bool:
        digest = digest_of(data)
        with self._lock:
            if self._said.get(topic) == digest:
                return False
        # Outside the lock, since it may wait; noted as said only afterwards, so that a failure is tried again.
        self._bus.publish(Message(topic, data, qos=1, retain=True))
        with self._lock:
            self._said[topic] = digest
        return True

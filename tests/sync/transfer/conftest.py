"""A hub with a blob, spokes that want it, and a line that may be bad."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sync.bus.bus import Bus, Handler, Message, Subscription
from sync.bus.memory import MemoryBroker, MemoryBus
from sync.core.types import SpokeId
from sync.protocol import topics
from sync.store import BLOCK_SIZE, MemoryStore
from sync.transfer import BlobSender, BlockReceiver, Patience

HASTY = Patience(quiet=0.45, longest=2.0, stalled=20.0)
ME = SpokeId("frankfurt")


def content(blocks: float, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(int(blocks * BLOCK_SIZE))


def hashes_of(data: bytes) -> list[bytes]:
    return [hashlib.sha256(data[i : i + BLOCK_SIZE]).digest() for i in range(0, len(data), BLOCK_SIZE)]


class BadLine:
    """A bus whose arriving messages may be lost, doubled, swapped or changed; everything else passes through."""

    def __init__(self, bus: Bus, fate: Callable[[Message], list[Message]]) -> None:
        self._bus, self._fate = bus, fate
        self.arrived = 0

    def subscribe(self, pattern: str, handler: Handler, *, qos: int = 1) -> Subscription:
        def through(message: Message) -> None:
            if message.topic.endswith("/want"):
                return
            for one in self._fate(message):
                self.arrived += len(one.payload)
                handler(one)

        return self._bus.subscribe(pattern, through, qos=qos)

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)


class Hub:
    """The sending end, in memory."""

    def __init__(self, zone: str = "eu") -> None:
        self.zone = zone
        self.broker = MemoryBroker()
        self.stores: list[MemoryStore] = []
        self.store = self.fresh()
        self.bus = self.broker.client("hub", topics.hub_rights())
        self.bus.connect()
        self.sender = BlobSender(self.bus, self.store, grace=0.3)
        self.sender.start()
        self.spokes: list[MemoryBus] = []

    def fresh(self) -> MemoryStore:
        self.stores.append(MemoryStore())
        return self.stores[-1]

    def spoke(self, me: SpokeId = ME, zone: str | None = None) -> MemoryBus:
        bus = self.broker.client(me.username, topics.spoke_rights(me, zone or self.zone))
        bus.connect()
        self.spokes.append(bus)
        return bus

    def close(self) -> None:
        self.sender.stop()
        for bus in (*self.spokes, self.bus):
            bus.close()
        for store in self.stores:
            store.close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


def receiver(bus: object, store: MemoryStore, *, me: SpokeId = ME, zone: str = "eu", patience: Patience = HASTY) -> BlockReceiver:
    return BlockReceiver(bus, zone, me, store, patience=patience)  # type: ignore[arg-type]


class InThread(threading.Thread):
    """A call on a thread, with its result or exception."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as e:
            self.error = e

    def done(self) -> object:
        self.join(30)
        assert not self.is_alive(), "it hangs"
        if self.error is not None:
            raise self.error
        return self.result

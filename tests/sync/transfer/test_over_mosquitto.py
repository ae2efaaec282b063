"""The same over the real broker: many spokes, and a broker that is killed in the middle."""

import threading
from pathlib import Path
from typing import Any

import pytest

from sync.core.types import SpokeId
from sync.store import BlobStore
from sync.transfer import BlobSender, BlockReceiver, Patience

from .conftest import InThread, content, hashes_of

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def sending(mosquitto: Any, tmp_path: Path) -> Any:
    bus = mosquitto.hub()
    bus.connect()
    sender = BlobSender(bus, BlobStore(tmp_path / "hub"), grace=0.3)
    sender.start()
    yield sender
    sender.stop()


def test_a_broker_killed_in_the_middle_costs_a_pause(mosquitto: Any, sending: BlobSender, tmp_path: Path) -> None:
    data = content(160)
    digest = BlobStore(tmp_path / "hub").put(data)
    me = SpokeId("frankfurt")
    bus = mosquitto.spoke(me, "eu")
    bus.connect()
    reached = threading.Event()

    def tell(held: int, size: int) -> None:
        if held > size // 4:
            reached.set()

    store = BlobStore(tmp_path / "spoke")
    receiver = BlockReceiver(bus, "eu", me, store, patience=Patience(quiet=0.45, longest=1, stalled=20))
    running = InThread(lambda: receiver.receive(digest, len(data), hashes_of(data), progress=tell))
    assert reached.wait(10)
    mosquitto.restart(kill=True)
    running.done()
    assert store.path(digest).read_bytes() == data
    assert sending.stats.bytes <= 1.15 * len(data) + (4 << 20), "what was under way when it fell, and no more"


def test_spokes_of_two_zones_get_their_own_copies(mosquitto: Any, sending: BlobSender, tmp_path: Path) -> None:
    data = content(40)
    digest = BlobStore(tmp_path / "hub").put(data)
    where = {SpokeId("dubai"): "me", SpokeId("frankfurt"): "eu", SpokeId("berlin"): "eu", SpokeId("paris"): "eu"}
    buses = {spoke: mosquitto.spoke(spoke, zone) for spoke, zone in where.items()}
    for bus in buses.values():
        bus.connect()

    def one(me: SpokeId) -> bytes:
        store = BlobStore(tmp_path / me.site)
        BlockReceiver(buses[me], where[me], me, store).receive(digest, len(data), hashes_of(data))
        return store.path(digest).read_bytes()

    threads = [InThread(lambda me=me: one(me)) for me in where]  # type: ignore[misc]
    assert all(thread.done() == data for thread in threads)
    assert sending.stats.bytes <= 3 * len(data), "two zones, two copies (and a little), not four"

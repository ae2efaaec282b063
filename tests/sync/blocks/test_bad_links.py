"""Over a line that is far, slow or cut every moment, by the real broker and by HTTP: all arrives, and little comes twice."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sync.blocks import BlobSender, BlockReceiver, Patience
from sync.store import BlobStore
from sync.types import SpokeId

from .bad_link import BadLink
from .conftest import InThread, content, hashes_of

pytestmark = pytest.mark.mosquitto
ME = SpokeId("frankfurt")
MIB = 1 << 20
PATIENCE = Patience(quiet=1.25, longest=2, stalled=20)
MOST = 1.15


@pytest.fixture
def sender(mosquitto: Any, tmp_path: Path) -> Iterator[BlobSender]:
    bus = mosquitto.hub()
    bus.connect()
    sender = BlobSender(bus, BlobStore(tmp_path / "hub"))
    sender.start()
    yield sender
    sender.stop()


class Spoke:
    """At the far end of a line."""

    def __init__(self, mosquitto: Any, link: BadLink, folder: Path, data: bytes) -> None:
        self.bus = mosquitto.spoke(ME, "eu", port=link.port)
        self.bus.connect()
        self.folder, self.data, self.half = folder, data, threading.Event()
        self.digest = BlobStore(folder / "hub").put(data)

    def receive(self) -> int:
        receiver = BlockReceiver(self.bus, "eu", ME, BlobStore(self.folder / "spoke"), patience=PATIENCE)
        return receiver.receive(self.digest, len(self.data), hashes_of(self.data), progress=self._tell)

    def has_all(self) -> bool:
        return BlobStore(self.folder / "spoke").path(self.digest).read_bytes() == self.data

    def _tell(self, held: int, size: int) -> None:
        if held * 2 >= size:
            self.half.set()


def test_a_line_that_is_cut_again_and_again(mosquitto: Any, sender: BlobSender, tmp_path: Path) -> None:
    data = content(12 * 8)
    with BadLink(mosquitto.broker.port, rate=16 * MIB, cut_every=3 * MIB) as link:
        spoke = Spoke(mosquitto, link, tmp_path, data)
        assert spoke.receive() == len(data)
        spoke.bus.close()
    assert spoke.has_all()
    assert link.calls >= 4
    assert link.down <= MOST * len(data)


def test_a_line_of_300_ms_each_way(mosquitto: Any, sender: BlobSender, tmp_path: Path) -> None:
    data = content(6 * 8)
    with BadLink(mosquitto.broker.port, delay_s=0.3) as link:
        spoke = Spoke(mosquitto, link, tmp_path, data)
        assert spoke.receive() == len(data)
        spoke.bus.close()
    assert spoke.has_all()
    assert max(link.down, sender.stats.bytes) <= MOST * len(data)


@pytest.mark.parametrize("who", ["broker", "hub"])
def test_what_restarts_in_the_middle(mosquitto: Any, sender: BlobSender, tmp_path: Path, who: str) -> None:
    data = content(10 * 8)
    with BadLink(mosquitto.broker.port, rate=16 * MIB) as link:
        spoke = Spoke(mosquitto, link, tmp_path, data)
        running = InThread(spoke.receive)
        assert spoke.half.wait(20)
        if who == "broker":
            mosquitto.restart(kill=True)
        else:
            sender.stop()
            again = BlobSender(sender._bus, BlobStore(tmp_path / "hub"))
            again.start()
        assert running.done() == len(data)
        spoke.bus.close()
        if who == "hub":
            again.stop()
    assert spoke.has_all()
    assert link.down <= MOST * len(data)

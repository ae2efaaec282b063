"""Over a line that is far, slow or cut every moment, by the real broker and by HTTP: all arrives, and little comes twice."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sync.bus.bus import Message
from sync.core.types import SpokeId
from sync.store import BlobStore
from sync.transfer import BlobSender, BlockReceiver, Patience

from .bad_link import BadLink
from .conftest import BadLine, InThread, content, hashes_of

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

    def receive(self, bus: Any = None) -> int:
        receiver = BlockReceiver(bus or self.bus, "eu", ME, BlobStore(self.folder / "spoke"), patience=PATIENCE)
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


def _lost(random: Random, message: Message) -> list[Message]:
    return [] if random.random() < 0.05 else [message]


def _doubled(random: Random, message: Message) -> list[Message]:
    return [message] * (2 if random.random() < 0.2 else 1)


class Shuffle:
    """Keeps some messages back until the next ones are past."""

    def __init__(self) -> None:
        self._kept: list[Message] = []

    def __call__(self, random: Random, message: Message) -> list[Message]:
        if len(self._kept) < 3 and random.random() < 0.3:
            self._kept.append(message)
            return []
        kept, self._kept = self._kept, []
        return [message, *reversed(kept)]


FATES: dict[str, Callable[[], list[Callable[[Random, Message], list[Message]]]]] = {
    "5 % are lost": lambda: [_lost],
    "many come twice": lambda: [_doubled],
    "the order is another": lambda: [Shuffle()],
    "all of that": lambda: [_lost, _doubled, Shuffle()],
}


@pytest.mark.parametrize("name", FATES)
def test_a_line_on_which_whole_messages_do_not_come_as_they_were_sent(
    mosquitto: Any, sender: BlobSender, tmp_path: Path, name: str
) -> None:
    """Blocks are QoS 0: brokers and bridges drop, repeat and re-order them when they cannot follow."""
    data, random, fates = content(12 * 8), Random(7), FATES[name]()

    def fate(message: Message) -> list[Message]:
        out = [message]
        for one in fates:
            out = [kept for each in out for kept in one(random, each)]
        return out

    with BadLink(mosquitto.broker.port, delay_s=0.03) as link:
        spoke = Spoke(mosquitto, link, tmp_path, data)
        line = BadLine(spoke.bus, fate)
        assert spoke.receive(line) == len(data)
        spoke.bus.close()
    assert spoke.has_all()
    assert max(link.down, sender.stats.bytes) <= MOST * len(data)
    if name == "5 % are lost":
        assert line.arrived < sender.stats.bytes
    if name == "many come twice":
        assert line.arrived > sender.stats.bytes


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

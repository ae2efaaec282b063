"""Blobs arrive whole over lines that lose, double, swap and forge blocks; and nothing forged gets to the disk."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from hub.config.settings import HubSettings
from model_formats.core.types import digest_of
from model_formats.package.image_layout import PackageTampered
from sync.bus.bus import Message
from sync.core.clock import ManualClock
from sync.core.types import SpokeId
from sync.protocol import topics
from sync.protocol.messages import Want
from sync.store import BLOCK_SIZE
from sync.transfer import BlobSender, BlockReceiver, Patience, TransferCancelled, TransferStalled
from sync.transfer.bitmap import encode

from .conftest import ME, BadLine, Hub, InThread, content, hashes_of, receiver


@pytest.mark.parametrize("blocks", [0, 1 / BLOCK_SIZE, 0.5, 1, 1.5, 2, 40.25])
def test_a_blob_of_any_size_arrives(hub: Hub, blocks: float) -> None:
    data = content(blocks)
    digest, store = hub.store.put(data), hub.fresh()
    assert receiver(hub.spoke(), store).receive(digest, len(data), hashes_of(data)) == len(data)
    assert store.path(digest).read_bytes() == data
    assert hub.sender.stats.blocks == len(hashes_of(data)), "each block once"


def test_a_blob_that_is_here_already_costs_nothing(hub: Hub) -> None:
    data = content(3)
    digest = hub.store.put(data)
    assert receiver(hub.spoke(), hub.store).receive(digest, len(data)) == 0
    assert hub.sender.stats.wants == 0


def test_progress_is_told_up_to_the_end(hub: Hub) -> None:
    data = content(20)
    told: list[tuple[int, int]] = []
    receiver(hub.spoke(), hub.fresh()).receive(
        hub.store.put(data), len(data), hashes_of(data), progress=lambda *now: told.append(now)
    )
    assert told == sorted(told)
    assert told[-1] == (len(data), len(data))


def _lossy(rng: random.Random, share: float) -> Callable[[Message], list[Message]]:
    return lambda message: [] if rng.random() < share else [message]


def _doubled(message: Message) -> list[Message]:
    return [message, message]


def _swapped() -> Callable[[Message], list[Message]]:
    held: list[Message] = []

    def fate(message: Message) -> list[Message]:
        held.append(message)
        if len(held) < 5:
            return []
        out = held[::-1]
        held.clear()
        return out

    return fate


def test_a_lossy_line_delivers_with_little_waste(hub: Hub) -> None:
    data = content(200)
    line, store = BadLine(hub.spoke(), _lossy(random.Random(3), 0.05)), hub.fresh()
    receiver(line, store).receive(hub.store.put(data), len(data), hashes_of(data))
    assert store.path(digest_of(data)).read_bytes() == data
    assert hub.sender.stats.bytes <= 1.15 * len(data)


def test_doubled_and_swapped_blocks_do_no_harm(hub: Hub) -> None:
    data = content(60)
    for fate in (_doubled, _swapped()):
        store = hub.fresh()
        receiver(BadLine(hub.spoke(), fate), store).receive(hub.store.put(data), len(data), hashes_of(data))
        assert store.path(digest_of(data)).read_bytes() == data


def test_a_poisoned_block_never_reaches_the_store_and_is_asked_for_again(hub: Hub) -> None:
    data = content(30)
    poisoned: set[str] = set()

    def fate(message: Message) -> list[Message]:
        if message.topic in poisoned or random.Random(message.topic).random() > 0.2:
            return [message]
        poisoned.add(message.topic)
        flipped = bytes([message.payload[0] ^ 1]) + message.payload[1:]
        return [Message(message.topic, flipped, qos=0)]

    store = hub.fresh()
    receiver(BadLine(hub.spoke(), fate), store).receive(hub.store.put(data), len(data), hashes_of(data))
    assert poisoned
    assert store.path(digest_of(data)).read_bytes() == data


def test_a_forged_block_beside_the_true_one_is_thrown_away(hub: Hub) -> None:
    data = content(10)

    def fate(message: Message) -> list[Message]:
        return [Message(message.topic, bytes(len(message.payload)), qos=0), message]

    store = hub.fresh()
    receiver(BadLine(hub.spoke(), fate), store).receive(hub.store.put(data), len(data), hashes_of(data))
    assert store.path(digest_of(data)).read_bytes() == data


@pytest.mark.parametrize("place", ["-1", "1", str(BLOCK_SIZE * 99), "9" * 30, "x", "", "٣", "0x0", "1e5"])
def test_a_block_at_a_place_that_is_none_is_left_alone(hub: Hub, place: str) -> None:
    data = content(4)
    digest = hub.store.put(data)

    def fate(message: Message) -> list[Message]:
        wrong = topics.block("eu", digest, 0).removesuffix("0") + place
        return [Message(wrong, message.payload, qos=0), Message(message.topic, message.payload[:-1], qos=0), message]

    store = hub.fresh()
    receiver(BadLine(hub.spoke(), fate), store).receive(digest, len(data), hashes_of(data))
    assert store.path(digest).read_bytes() == data


def test_without_a_block_list_the_whole_is_checked_and_nothing_forged_is_kept(hub: Hub) -> None:
    data = content(1)
    digest, store = hub.store.put(data), hub.fresh()

    def forged(message: Message) -> list[Message]:
        return [Message(message.topic, bytes(len(message.payload)), qos=0)]

    with pytest.raises(PackageTampered):
        receiver(BadLine(hub.spoke(), forged), store).receive(digest, len(data))
    assert not store.has(digest)
    receiver(hub.spoke(), store).receive(digest, len(data))
    assert store.path(digest).read_bytes() == data


def test_a_block_list_of_the_wrong_length_is_refused(hub: Hub) -> None:
    with pytest.raises(ValueError, match="blocks"):
        receiver(hub.spoke(), hub.fresh()).receive(digest_of(b"x"), 1, [b"", b""])


def test_a_cancelled_transfer_stops_within_a_second_and_goes_on_later(hub: Hub) -> None:
    data = content(50)
    digest, store = hub.store.put(data), hub.fresh()
    cancel = threading.Event()
    seen = threading.Event()
    count = iter(range(1_000_000))

    def fate(message: Message) -> list[Message]:
        if next(count) >= 20:
            seen.set()
            return []
        return [message]

    running = InThread(
        lambda: receiver(BadLine(hub.spoke(), fate), store).receive(digest, len(data), hashes_of(data), cancel=cancel)
    )
    assert seen.wait(10)
    before = time.monotonic()
    cancel.set()
    with pytest.raises(TransferCancelled):
        running.done()
    assert time.monotonic() - before < 1.0
    received = receiver(hub.spoke(), store).receive(digest, len(data), hashes_of(data))
    assert len(data) - 20 * BLOCK_SIZE <= received < len(data), "what was kept did not come again"


def test_a_hub_that_does_not_answer_is_named_after_the_patience(hub: Hub) -> None:
    patience = Patience(quiet=0.05, longest=0.1, stalled=0.4)
    with pytest.raises(TransferStalled, match="nothing new"):
        receiver(hub.spoke(), hub.fresh(), patience=patience).receive(digest_of(b"unknown"), 7)


def test_a_line_that_is_down_is_waited_for(hub: Hub, eventually: Callable[..., None]) -> None:
    data = content(120)
    digest, store, bus = hub.store.put(data), hub.fresh(), hub.spoke()
    reached = threading.Event()
    patience = Patience(quiet=0.3, longest=1, stalled=0.5)

    def tell(held: int, size: int) -> None:
        if held > size // 4 and not reached.is_set():
            reached.set()
            hub.broker.cut(bus)

    running = InThread(lambda: receiver(bus, store, patience=patience).receive(digest, len(data), hashes_of(data), progress=tell))
    assert reached.wait(10)
    running.join(1.0)
    assert running.is_alive(), "no line is no reason to give up"
    hub.broker.heal(bus)
    running.done()
    assert store.path(digest).read_bytes() == data


def test_a_hub_that_restarts_in_the_middle_is_asked_again(hub: Hub) -> None:
    data = content(120)
    digest, store = hub.store.put(data), hub.fresh()
    reached = threading.Event()

    def tell(held: int, size: int) -> None:
        if held > size // 4 and not reached.is_set():
            hub.sender.stop()
            reached.set()

    bus = hub.spoke()
    running = InThread(lambda: receiver(bus, store).receive(digest, len(data), hashes_of(data), progress=tell))
    assert reached.wait(10)
    hub.sender = BlobSender(hub.bus, hub.store, grace=0.3)
    hub.sender.start()
    running.done()
    assert store.path(digest).read_bytes() == data


def test_many_spokes_cost_about_one_copy(hub: Hub) -> None:
    hub.sender.stop()
    hub.sender = BlobSender(hub.bus, hub.store, gather_s=HubSettings().block_gather_s)
    hub.sender.start()
    data, small = content(100), b"an index comes first"
    digest, index = hub.store.put(data), hub.store.put(small)
    names = [SpokeId(f"site-{i}") for i in range(12)]
    ready = threading.Barrier(len(names))

    def one(me: SpokeId) -> bytes:
        store, bus = hub.fresh(), hub.spoke(me)
        ready.wait(10)
        ours = receiver(bus, store, me=me, patience=Patience())
        ours.receive(index, len(small))
        ours.receive(digest, len(data), hashes_of(data))
        return store.path(digest).read_bytes()

    threads = [InThread(lambda me=me: one(me)) for me in names]  # type: ignore[misc]
    assert all(thread.done() == data for thread in threads)
    assert hub.sender.stats.bytes <= 1.3 * len(data), "the hub as it is set, on one core for all twelve"


def test_a_ring_is_waited_for_and_a_single_spoke_does_not_wait(hub: Hub, eventually: Callable[..., None]) -> None:
    hub.sender.stop()
    hub.sender = BlobSender(hub.bus, hub.store, gather_s=3600)
    hub.sender.start()
    small, large = content(1), content(40)
    bus = hub.spoke()
    receiver(bus, hub.fresh()).receive(hub.store.put(small), len(small), hashes_of(small))
    assert hub.sender.stats.blocks == 1
    other = SpokeId("berlin")
    start, missing = encode([0])
    want = Want(site=other.site, spoke=other.spoke, start=start, missing=missing, credit=1)
    hub.spoke(other).publish(Message(topics.want("eu", digest_of(small)), want.canonical(), qos=0))
    eventually(lambda: hub.sender.stats.wants == 2)
    cancel = threading.Event()
    waiting = InThread(
        lambda: receiver(bus, hub.fresh()).receive(hub.store.put(large), len(large), hashes_of(large), cancel=cancel)
    )
    eventually(lambda: hub.sender.stats.wants == 3)
    assert hub.sender.stats.bytes <= 2 * len(small), "the large one waits for the others"
    cancel.set()
    with pytest.raises(TransferCancelled):
        waiting.done()


def test_as_long_as_a_ring_grows_it_is_waited_for_within_bounds(hub: Hub) -> None:
    asks, sender, clock = _asking(hub, gather_s=1.0)
    index = hub.store.put(b"an index")
    for i in range(3):
        asks(f"site-{i}", [0], index)
    assert sender.stats.blocks == 1
    for i in range(2):
        asks(f"site-{i}", [0, 1])
    clock.advance(1.1)
    assert not sender.turn()
    assert sender.stats.blocks == 1, "one that has the index has not asked yet"
    for i in range(2, 4):
        asks(f"site-{i}", [0, 1])
        clock.advance(0.9)
    assert sender.stats.blocks == 1, "somebody new came within the second, again and again"
    clock.advance(0.2)
    _answer(sender)
    assert sender.stats.blocks == 3


def test_what_some_have_missed_comes_last_and_once_for_all_of_them(hub: Hub) -> None:
    asks, sender, clock = _asking(hub, gather_s=0.0)
    asks("site-0", [0, 1, 2])
    assert sender.stats.blocks == 3
    clock.advance(2)
    asks("site-0", [3, 4])
    asks("site-1", [0, 1])
    asks("site-2", [0, 1, 2])
    assert sender.stats.blocks == 5, "others are still at what is new to all"
    clock.advance(0.3)
    _answer(sender)
    assert sender.stats.blocks == 8
    asks("site-1", [0])
    assert sender.stats.blocks == 8, "one copy of what was missed, for both"


def _asking(hub: Hub, gather_s: float) -> tuple[Callable[..., None], BlobSender, ManualClock]:
    """A sender whose clock stands still and whose turns the test takes, and a way to ask it for blocks of one blob."""
    clock, data = ManualClock(), content(40)
    _without_thread(hub, gather_s=gather_s, clock=clock)
    blob, buses = hub.store.put(data), {}

    def ask(site: str, blocks: list[int], digest: str = blob) -> None:
        if site not in buses:
            buses[site] = hub.spoke(SpokeId(site))
        start, missing = encode(blocks)
        want, before = Want(site=site, spoke="main", start=start, missing=missing, credit=len(blocks)), hub.sender.stats.wants
        buses[site].publish(Message(topics.want("eu", digest), want.canonical(), qos=0))
        while hub.sender.stats.wants == before:
            hub.sender.turn()
        _answer(hub.sender)

    return ask, hub.sender, clock


def _without_thread(hub: Hub, **options: Any) -> None:
    """Another sender in place of the hub's, which answers only in its `turn`."""
    hub.sender.stop()
    hub.sender = BlobSender(hub.bus, hub.store, **options)
    hub.sender.subscribe()


def _answer(sender: BlobSender) -> None:
    """Turns until nothing may be sent."""
    while sender.turn():
        pass


def test_a_late_joiner_asks_only_for_what_it_missed(hub: Hub) -> None:
    data = content(400)
    digest = hub.store.put(data)
    first, second = hub.fresh(), hub.fresh()
    halfway, joined = threading.Event(), threading.Event()

    def tell(held: int, size: int) -> None:
        if held > size // 2 and not halfway.is_set():
            halfway.set()
            joined.wait(5)

    bus_one, bus_two = hub.spoke(), hub.spoke(SpokeId("dubai"))
    one = InThread(lambda: receiver(bus_one, first).receive(digest, len(data), hashes_of(data), progress=tell))
    assert halfway.wait(10)
    late = receiver(bus_two, second, me=SpokeId("dubai"))
    two = InThread(lambda: late.receive(digest, len(data), hashes_of(data), progress=lambda held, size: joined.set()))
    one.done()
    two.done()
    assert second.path(digest).read_bytes() == data
    assert hub.sender.stats.bytes <= 1.75 * len(data)


def test_a_blob_stays_in_the_zones_it_may_go_to(hub: Hub) -> None:
    data = content(1)
    digest = hub.store.put(data)
    hub.sender.stop()
    hub.sender = BlobSender(hub.bus, hub.store, may=lambda zone, asked: zone == "me" and asked == digest)
    hub.sender.start()
    patience = Patience(quiet=0.05, longest=0.1, stalled=0.3)
    with pytest.raises(TransferStalled):
        receiver(hub.spoke(zone="eu"), hub.fresh(), patience=patience).receive(digest, len(data))
    dubai = SpokeId("dubai")
    receiver(hub.spoke(dubai, "me"), hub.fresh(), me=dubai, zone="me").receive(digest, len(data))


def test_a_paced_hub_keeps_its_rate(hub: Hub) -> None:
    data = content(12)
    hub.sender.stop()
    hub.sender = BlobSender(hub.bus, hub.store, bytes_per_second=8 * BLOCK_SIZE)
    hub.sender.start()
    begin = time.monotonic()
    receiver(hub.spoke(), hub.fresh()).receive(hub.store.put(data), len(data), hashes_of(data))
    assert time.monotonic() - begin > 0.2, "eight blocks at once, the other four in their time"
    assert hub.sender.stats.bytes == len(data), "slow is not lost: nothing was sent twice"


def _want(**fields: Any) -> bytes:
    values = {"site": "x", "spoke": "main", "start": 0, "missing": "/w==", "credit": 8}
    return Want(**(values | fields)).canonical()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"\xff" * 100,
        _want(missing="!"),
        _want(start=10**15),
        _want(credit=0),
        _want(missing=""),
        b'{"kind":"want"}',
        b"[" * 60_000,
    ],
)
def test_a_bad_want_is_answered_with_nothing_and_the_hub_lives_on(
    hub: Hub, payload: bytes, eventually: Callable[..., None]
) -> None:
    data = content(3)
    digest, bus = hub.store.put(data), hub.spoke()
    bus.publish(Message(topics.want("eu", digest), payload, qos=0))
    eventually(lambda: hub.sender.stats.wants == 1)
    assert hub.sender.stats.blocks == 0
    receiver(bus, hub.fresh()).receive(digest, len(data), hashes_of(data))


def test_a_greedy_want_is_capped(hub: Hub) -> None:
    from sync.transfer.sender import MAX_CREDIT

    _without_thread(hub)
    blocks = MAX_CREDIT * 3
    digest = hub.store.put(bytes(blocks * BLOCK_SIZE))
    start, missing = encode(range(blocks))
    hub.spoke().publish(Message(topics.want("eu", digest), _want(start=start, missing=missing, credit=4096), qos=0))
    while not hub.sender.stats.wants:
        hub.sender.turn()
    _answer(hub.sender)
    assert hub.sender.stats.blocks == MAX_CREDIT


def test_nothing_that_was_written_comes_again_after_a_kill(hub: Hub, tmp_path: Any) -> None:
    """A store on disk, and a process that just ends: what the map says is there is there, the rest comes again."""
    from sync.store import BlobStore

    data = content(100)
    digest = hub.store.put(data)
    writer = BlobStore(tmp_path).writer(digest, len(data))
    for index in range(77):
        writer.write(index, data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
    # no close: the process is gone
    store = BlobStore(tmp_path)
    again = receiver(hub.spoke(), store).receive(digest, len(data), hashes_of(data))  # type: ignore[arg-type]
    assert again == len(data) - 77 * BLOCK_SIZE
    assert store.path(digest).read_bytes() == data


class Valve:
    """A pace that a test opens and closes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.spent = 0

    def wait(self) -> float:
        return self.seconds

    def spend(self, size: int) -> None:
        self.spent += size


def test_a_site_that_holds_back_is_not_a_stall(hub: Hub) -> None:
    data = content(60)
    digest, store, valve = hub.store.put(data), hub.fresh(), Valve()
    bus = hub.spoke()
    closed = threading.Event()

    def tell(held: int, size: int) -> None:
        if held > size // 3 and not closed.is_set():
            valve.seconds = 3600.0
            closed.set()

    patience = Patience(quiet=0.1, longest=0.2, stalled=0.3)
    running = InThread(
        lambda: BlockReceiver(bus, "eu", ME, store, patience=patience, pace=valve).receive(
            digest, len(data), hashes_of(data), progress=tell
        )
    )
    assert closed.wait(10)
    running.join(0.8)
    assert running.is_alive()
    sent = hub.sender.stats.blocks
    assert sent < 60, "it asked for nothing more"
    valve.seconds = 0.0
    running.done()
    assert valve.spent == len(data)

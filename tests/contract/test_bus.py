"""One suite for both buses: what a caller may count on, whichever is underneath."""

import queue
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from sync.bus.bus import Bus, BusDown, Message
from sync.bus.memory import MemoryBroker, MemoryBus
from sync.bus.mqtt import MAX_PACKET_BYTES, MqttBus
from sync.core.types import SpokeId
from sync.protocol import topics

DUBAI, FRANKFURT = SpokeId("dubai"), SpokeId("frankfurt")
DIGEST = "sha256:" + "0" * 64


class House(Protocol):
    """A broker, and what may happen to it."""

    def hub(self, name: str = "hub") -> Bus: ...
    def spoke(self, spoke: SpokeId, zone: str) -> Bus: ...
    def cut(self, bus: Bus) -> None: ...
    def heal(self, bus: Bus) -> None: ...
    def restart(self) -> None: ...


class MemoryHouse:
    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def hub(self, name: str = "hub") -> Bus:
        return self.broker.client(name, topics.hub_rights())

    def spoke(self, spoke: SpokeId, zone: str) -> Bus:
        return self.broker.client(spoke.username, topics.spoke_rights(spoke, zone))

    def cut(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        self.broker.cut(bus)

    def heal(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        self.broker.heal(bus)

    def restart(self) -> None:
        self.broker.stop()
        self.broker.start()


class MqttHouse:
    def __init__(self, mosquitto: Any) -> None:
        self.mosquitto = mosquitto

    def hub(self, name: str = "hub") -> Bus:
        bus: Bus = self.mosquitto.hub(name)
        return bus

    def spoke(self, spoke: SpokeId, zone: str) -> Bus:
        bus: Bus = self.mosquitto.spoke(spoke, zone)
        return bus

    def cut(self, bus: Bus) -> None:
        assert isinstance(bus, MqttBus)
        wire = bus._client.socket()
        assert wire is not None
        wire.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    def heal(self, bus: Bus) -> None:
        pass  # it does so by itself

    def restart(self) -> None:
        self.mosquitto.restart()


@pytest.fixture(params=["memory", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def house(request: pytest.FixtureRequest) -> House:
    return MemoryHouse() if request.param == "memory" else MqttHouse(request.getfixturevalue("mosquitto"))


@pytest.fixture
def buses(house: House) -> Iterator[tuple[Bus, Bus]]:
    """A hub and a spoke of zone `eu`, connected."""
    hub, spoke = house.hub(), house.spoke(FRANKFURT, "eu")
    hub.connect()
    spoke.connect()
    yield hub, spoke
    spoke.close()
    hub.close()


class Inbox(queue.Queue[Message]):
    """Messages as they come."""

    def take(self) -> Message:
        return self.get(timeout=10)

    def __call__(self, message: Message) -> None:
        self.put(message)


def test_a_message_arrives_with_topic_and_bytes(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    inbox = Inbox()
    hub.subscribe("ss/v1/site/+/+/report", inbox)
    spoke.publish(Message(topics.report(FRANKFURT), b"\x00\xffreport"))
    assert inbox.take() == Message(topics.report(FRANKFURT), b"\x00\xffreport", qos=1, retain=False)
    assert spoke.flush(5)


def test_a_later_subscriber_gets_what_was_retained_and_marked_so(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    hub.publish(Message(topics.desired(FRANKFURT), b"one", retain=True))
    hub.publish(Message(topics.desired(FRANKFURT), b"two", retain=True))
    assert hub.flush(5)
    inbox = Inbox()
    spoke.subscribe(topics.desired(FRANKFURT), inbox)
    assert inbox.take() == Message(topics.desired(FRANKFURT), b"two", retain=True)


def test_an_empty_retained_message_clears_the_topic(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    hub.publish(Message(topics.desired(FRANKFURT), b"old", retain=True))
    hub.publish(Message(topics.desired(FRANKFURT), b"", retain=True))
    hub.publish(Message(topics.tuf("eu", "root.json"), b"root", retain=True))
    assert hub.flush(5)
    inbox = Inbox()
    spoke.subscribe(topics.desired(FRANKFURT), inbox)
    spoke.subscribe(topics.tuf("eu", "+"), inbox)
    assert inbox.take().payload == b"root"


def test_a_message_for_a_subscriber_carries_no_retain_mark_when_it_is_live(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    inbox = Inbox()
    spoke.subscribe(topics.desired(FRANKFURT), inbox)
    hub.publish(Message(topics.desired(FRANKFURT), b"now", retain=True))
    assert inbox.take() == Message(topics.desired(FRANKFURT), b"now", retain=False)


def test_the_order_of_one_sender_is_kept(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    inbox = Inbox()
    hub.subscribe(topics.report(FRANKFURT), inbox)
    for i in range(200):
        spoke.publish(Message(topics.report(FRANKFURT), str(i).encode()))
    assert [inbox.take().payload for _ in range(200)] == [str(i).encode() for i in range(200)]


def test_a_cancelled_subscription_is_silent(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    cancelled, kept = Inbox(), Inbox()
    subscription = hub.subscribe(topics.report(FRANKFURT), cancelled)
    hub.subscribe("ss/v1/site/frankfurt/#", kept)
    subscription.cancel()
    spoke.publish(Message(topics.report(FRANKFURT), b"x"))
    assert kept.take().payload == b"x"
    assert cancelled.empty()


def test_two_handlers_of_one_pattern_both_hear_and_one_may_leave(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    first, second = Inbox(), Inbox()
    hub.subscribe(topics.report(FRANKFURT), first).cancel()
    subscription = hub.subscribe(topics.report(FRANKFURT), first)
    hub.subscribe(topics.report(FRANKFURT), second)
    spoke.publish(Message(topics.report(FRANKFURT), b"both"))
    assert (first.take().payload, second.take().payload) == (b"both", b"both")
    subscription.cancel()
    spoke.publish(Message(topics.report(FRANKFURT), b"one"))
    assert second.take().payload == b"one"
    assert first.empty()


def test_overlapping_patterns_call_each_handler_once(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    narrow, wide = Inbox(), Inbox()
    hub.subscribe(topics.report(FRANKFURT), narrow)
    hub.subscribe("ss/v1/site/#", wide)
    spoke.publish(Message(topics.report(FRANKFURT), b"1"))
    spoke.publish(Message(topics.report(FRANKFURT), b"2"))
    assert [narrow.take().payload, narrow.take().payload] == [b"1", b"2"]
    assert [wide.take().payload, wide.take().payload] == [b"1", b"2"]
    assert narrow.empty()
    assert wide.empty()


def test_a_handler_that_raises_does_not_stop_the_others(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    inbox = Inbox()

    def bad(message: Message) -> None:
        raise RuntimeError("a fault in a handler")

    hub.subscribe("ss/v1/site/frankfurt/+/status", bad)
    hub.subscribe(topics.report(FRANKFURT), inbox)
    spoke.publish(Message(topics.status(FRANKFURT), b"x"))
    spoke.publish(Message(topics.report(FRANKFURT), b"still here"))
    assert inbox.take().payload == b"still here"


def test_a_handler_may_publish_and_subscribe(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    inbox = Inbox()

    def answer(message: Message) -> None:
        hub.subscribe("ss/v1/site/+/+/status", inbox)
        hub.publish(Message(topics.desired(FRANKFURT), b"answer"))

    hub.subscribe(topics.report(FRANKFURT), answer)
    spoke.subscribe(topics.desired(FRANKFURT), inbox)
    spoke.publish(Message(topics.report(FRANKFURT), b"question"))
    assert inbox.take().payload == b"answer"


def test_a_spoke_cannot_write_where_it_may_not(house: House, buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    inbox = Inbox()
    hub.subscribe("ss/v1/#", inbox)
    forbidden = (
        topics.desired(FRANKFURT),
        topics.report(DUBAI),
        topics.tuf("eu", "root.json"),
        topics.block("eu", DIGEST, 0),
        topics.want("me", DIGEST),
        topics.report(SpokeId("frankfurt", "other")),
    )
    for topic in forbidden:
        spoke.publish(Message(topic, b"forged"))
    spoke.publish(Message(topics.report(FRANKFURT), b"allowed"))
    assert inbox.take() == Message(topics.report(FRANKFURT), b"allowed")


def test_a_spoke_cannot_read_another_site_or_zone(house: House, buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    inbox = Inbox()
    spoke.subscribe("ss/v1/#", inbox)
    hub.publish(Message(topics.desired(DUBAI), b"secret", retain=True))
    hub.publish(Message(topics.block("me", DIGEST, 0), b"secret", qos=0))
    hub.publish(Message(topics.report(FRANKFURT), b"secret"))
    hub.publish(Message(topics.desired(FRANKFURT), b"yours", retain=True))
    assert inbox.take() == Message(topics.desired(FRANKFURT), b"yours")


def test_a_broken_connection_publishes_the_last_will(house: House, buses: tuple[Bus, Bus]) -> None:
    hub, _ = buses
    dubai = house.spoke(DUBAI, "me")
    dubai.connect(will=Message(topics.status(DUBAI), b"gone", retain=True))
    inbox = Inbox()
    hub.subscribe(topics.status(DUBAI), inbox)
    house.cut(dubai)
    assert inbox.take().payload == b"gone"
    dubai.close()


def test_a_clean_close_publishes_no_will(house: House, buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    dubai = house.spoke(DUBAI, "me")
    inbox = Inbox()
    hub.subscribe("ss/v1/site/#", inbox)
    dubai.connect(will=Message(topics.status(DUBAI), b"gone"))
    dubai.close()
    spoke.publish(Message(topics.report(FRANKFURT), b"next"))
    assert inbox.take().payload == b"next"


def test_subscriptions_survive_a_restart_of_the_broker(
    house: House, buses: tuple[Bus, Bus], eventually: Callable[..., None]
) -> None:
    hub, spoke = buses
    inbox = Inbox()
    spoke.subscribe(topics.desired(FRANKFURT), inbox)
    hub.publish(Message(topics.desired(FRANKFURT), b"before", retain=True))
    assert inbox.take().payload == b"before"
    house.restart()
    assert inbox.take().payload == b"before", "what is retained comes again: state is level-triggered"
    eventually(lambda: hub.connected and spoke.connected)
    hub.publish(Message(topics.desired(FRANKFURT), b"after", retain=True))
    payload = inbox.take().payload
    assert payload == b"after" or inbox.take().payload == b"after"


def test_every_connect_is_announced(house: House, buses: tuple[Bus, Bus]) -> None:
    dubai = house.spoke(DUBAI, "me")
    connects: queue.Queue[bool] = queue.Queue()
    dubai.on_connect(lambda: connects.put(dubai.connected))
    dubai.connect()
    assert connects.get(timeout=10) is True
    house.restart()
    assert connects.get(timeout=10) is True
    dubai.close()


def test_a_message_of_qos_1_waits_for_the_connection(house: House, buses: tuple[Bus, Bus]) -> None:
    hub, _ = buses
    inbox = Inbox()
    hub.subscribe("ss/v1/site/dubai/#", inbox)
    dubai = house.spoke(DUBAI, "me")
    dubai.publish(Message(topics.report(DUBAI), b"early"))
    assert not dubai.flush(0.05)
    dubai.connect()
    assert inbox.take().payload == b"early"
    dubai.close()


def test_a_message_of_qos_0_is_refused_without_a_connection(house: House) -> None:
    bus = house.hub()
    with pytest.raises(BusDown, match="not connected"):
        bus.publish(Message(topics.block("eu", DIGEST, 0), b"x", qos=0))


def test_a_subscription_made_before_connecting_counts(house: House, buses: tuple[Bus, Bus]) -> None:
    hub, _ = buses
    dubai = house.spoke(DUBAI, "me")
    inbox = Inbox()
    dubai.subscribe(topics.desired(DUBAI), inbox)
    hub.publish(Message(topics.desired(DUBAI), b"x", retain=True))
    assert hub.flush(5)
    dubai.connect()
    assert inbox.take().payload == b"x"
    dubai.close()


def test_members_of_a_group_share_the_work(house: House, buses: tuple[Bus, Bus], eventually: Callable[..., None]) -> None:
    hub, spoke = buses
    other = house.hub("hub-1")
    other.connect()
    one, two, all_ = Inbox(), Inbox(), Inbox()
    hub.subscribe("$share/hub/ss/v1/site/+/+/report", one)
    other.subscribe("$share/hub/ss/v1/site/+/+/report", two)
    other.subscribe("ss/v1/site/#", all_)
    for i in range(20):
        spoke.publish(Message(topics.report(FRANKFURT), str(i).encode()))
    eventually(lambda: one.qsize() + two.qsize() == 20 == all_.qsize())
    assert one.qsize()
    assert two.qsize()
    other.close()


def test_a_large_message_passes_up_to_the_limit(buses: tuple[Bus, Bus]) -> None:
    hub, spoke = buses
    inbox = Inbox()
    spoke.subscribe(topics.blocks_of("eu", DIGEST), inbox, qos=0)
    payload = bytes(range(256)) * ((MAX_PACKET_BYTES - 1024) // 256)
    hub.publish(Message(topics.block("eu", DIGEST, 0), payload, qos=0))
    assert inbox.take().payload == payload


def test_closing_twice_is_closing_once(house: House) -> None:
    bus = house.hub()
    bus.connect()
    bus.close()
    bus.close()
    assert not bus.connected

"""A relay between two real Mosquittos: metadata and directives come through, reports go back, blocks cross once."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from provisioning.brokers.access_list import render_acl
from provisioning.brokers.mosquitto import Broker
from provisioning.brokers.relay import Bridge, relay_rights
from sync.bus.bus import Message
from sync.bus.mqtt import MqttBus
from sync.core.types import SpokeId
from sync.protocol import topics
from sync.protocol.topics import Right, spoke_rights
from sync.store import BlobStore
from sync.transfer import BlobSender, BlockReceiver
from tests.sync.transfer.conftest import InThread, content, hashes_of

SITES = tuple((SpokeId(f"site-{i}"), "eu") for i in range(3))
ELSEWHERE = SpokeId("dubai")


@pytest.fixture
def relay(mosquitto: Any, tmp_path: Path) -> Iterator[Broker]:
    now = datetime.now(UTC)
    mosquitto.spokes.append((ELSEWHERE, "me"))
    mosquitto.broker.allow(mosquitto.spokes, relays={"berlin": SITES})
    link = mosquitto.ca.issue_client(tmp_path / "relay-tls", "relay-berlin", now=now)
    bridge = Bridge("berlin", "localhost", mosquitto.broker.port, link, SITES)
    relay = Broker(tmp_path / "relay", mosquitto.ca.issue_server(tmp_path / "relay-tls", ["localhost"], now=now), bridge=bridge)
    relay.start(SITES)
    yield relay
    relay.stop()


@pytest.fixture
def spokes(mosquitto: Any, relay: Broker) -> Iterator[dict[SpokeId, MqttBus]]:
    buses = {s: MqttBus("localhost", relay.port, s.username, mosquitto.spoke_tls(s)) for s, _ in SITES}
    for bus in buses.values():
        bus.connect()
    yield buses
    for bus in buses.values():
        bus.close()


@pytest.fixture
def hub(mosquitto: Any) -> MqttBus:
    bus: MqttBus = mosquitto.hub()
    bus.connect()
    return bus


def test_metadata_directives_and_reports_pass(
    hub: MqttBus, spokes: dict[SpokeId, MqttBus], eventually: Callable[..., None]
) -> None:
    spoke, bus = next(iter(spokes.items()))
    down: list[Message] = []
    up: list[Message] = []
    hub.publish(Message(topics.tuf("eu", "timestamp.json"), b"time", retain=True))
    hub.publish(Message(topics.desired(spoke), b"directive", retain=True))
    hub.publish(Message(topics.desired(ELSEWHERE), b"not yours", retain=True))
    hub.subscribe("ss/v1/site/#", up.append)
    bus.subscribe("ss/v1/#", down.append)
    eventually(lambda: {message.payload for message in down} == {b"time", b"directive"})
    bus.publish(Message(topics.report(spoke), b"report"))
    bus.publish(Message(topics.report(ELSEWHERE), b"forged"))
    eventually(lambda: b"report" in {message.payload for message in up})
    assert b"forged" not in {message.payload for message in up}


def test_blocks_cross_the_long_link_once(hub: MqttBus, spokes: dict[SpokeId, MqttBus], tmp_path: Path) -> None:
    index, data = content(1), content(40)
    store = BlobStore(tmp_path / "hub")
    digests = store.put(index), store.put(data)
    sender = BlobSender(hub, store, gather_s=2.0)  # on a slow machine too they are one ring
    sender.start()

    def one(me: SpokeId) -> bytes:
        own = BlobStore(tmp_path / me.site)
        for digest, blob in zip(digests, (index, data), strict=True):  # what is small first, as in a rollout
            BlockReceiver(spokes[me], "eu", me, own).receive(digest, len(blob), hashes_of(blob))
        return own.path(digests[1]).read_bytes()

    threads = [InThread(lambda me=me: one(me)) for me in spokes]  # type: ignore[misc]
    assert all(thread.done() == data for thread in threads)
    sender.stop()
    assert sender.stats.bytes <= 1.25 * len(data)


def test_a_relay_may_do_what_its_spokes_may_and_no_more() -> None:
    rights = relay_rights(SITES)
    assert Right("read", topics.desired(SITES[0][0])) in rights
    assert not any("/me/" in right.pattern or "dubai" in right.pattern or "#" in right.pattern for right in rights)
    own = len([right for right in spoke_rights(*SITES[0]) if "/site/" in right.pattern])
    assert len(rights) == len(set(rights)) == 5 + own * len(SITES)
    assert "user relay-berlin" in render_acl([], relays={"berlin": SITES})

import pytest

from hub.rules.rollout_plan import RolloutPlan
from hub.services import rollout_runner, rollouts
from hub.services.broker_publisher import BrokerPublisher
from hub.services.enrolments import revoke
from hub.services.zone_blobs import ZoneBlobs
from model_formats.core.types import digest_of
from sync.bus.memory import MemoryBroker
from sync.protocol import topics
from sync.protocol.topics import hub_rights, spoke_rights
from sync.trust.client import TrustStore
from sync.trust.verifier import verify_directive


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def publisher(house, broker):
    bus = broker.client("hub", hub_rights())
    bus.connect()
    return BrokerPublisher(house.hub, bus)


def heard(broker, device, pattern):
    """What a spoke gets that connects now."""
    bus, got = broker.client(device.spoke.username, spoke_rights(device.spoke, device.identity.zone)), {}
    bus.connect()
    bus.subscribe(pattern, lambda m: got.__setitem__(m.topic.rpartition("/")[2], m.payload))
    bus.flush(5)
    return got


def test_a_spoke_can_verify_all_that_is_retained_for_it(house, broker, publisher, tmp_path, eventually):
    dubai = house.enrol("dubai")
    house.release(1)
    publisher.tick()
    files = heard(broker, dubai, topics.tuf("me", "+"))
    eventually(lambda: "timestamp.json" in files)
    trust = TrustStore(tmp_path / "trust", house.clock, dubai.identity.tuf_root)
    released = trust.update(files.get)
    assert "models/digits/1/index.json" in released.targets
    got = heard(broker, dubai, topics.desired(dubai.spoke))
    eventually(lambda: got)
    directive = verify_directive(got["desired"], released, dubai.spoke, "me", 0, trust.now())
    assert (directive.generation, directive.models) == (1, ())


def test_nothing_new_publishes_nothing_and_a_reconnect_publishes_all(house, publisher):
    house.enrol("dubai")
    first = publisher.tick()
    assert first > 5
    assert publisher.tick() == 0
    publisher.forget()
    assert publisher.tick() == first


def test_directives_are_signed_anew_before_they_expire(house, publisher, clock):
    house.enrol("dubai")
    publisher.tick()
    clock.advance(house.hub.settings.directive_ttl_s * 0.4)
    publisher.refresh()
    assert publisher.tick() > 0  # the timestamp is another one
    before = publisher.tick()
    clock.advance(house.hub.settings.directive_ttl_s * 0.2)
    publisher.refresh()
    assert (before, publisher.tick() > 0) == (0, True)


def test_a_revoked_spokes_directive_is_cleared(house, broker, publisher, eventually):
    dubai = house.enrol("dubai")
    publisher.tick()
    revoke(house.hub, dubai.spoke, "ann")
    assert publisher.tick() == 1
    assert heard(broker, dubai, topics.desired(dubai.spoke)) == {}


def test_blobs_go_only_where_a_released_version_may(house):
    zone_blobs = ZoneBlobs(house.hub)
    index = house.release(1, zones=("me",))
    assert zone_blobs.may("me", index)
    assert not zone_blobs.may("eu", index)
    assert not zone_blobs.may("me", digest_of(b"something else"))
    later = house.release(2)
    assert zone_blobs.may("eu", later)


def test_a_rollout_reaches_the_retained_directive(house, broker, publisher, eventually):
    dubai = house.enrol("dubai")
    house.release(1)
    spec = b"{model: digits@1, rings: [{name: a, sites: [dubai]}]}"
    plan = b"{apiVersion: spokeshave/v1, kind: Rollout, metadata: {name: r}, spec: " + spec + b"}"
    rollouts.apply(house.hub, RolloutPlan.parse(plan), "ann")
    rollout_runner.tick(house.hub)
    publisher.tick()
    got = heard(broker, dubai, topics.desired(dubai.spoke))
    eventually(lambda: got)
    assert b'"signatures"' in got["desired"]

"""The real hub's voice and ear, a real agent whose clock is years off, real TUF between them: the spoke comes to its senses."""

from datetime import UTC, datetime

import pytest

from hub.services.broker_publisher import BrokerPublisher
from hub.services.directives import refresh_directive
from hub.services.ingest import Ingest
from hub.store.spokes import find_spoke
from spoke_agent.daemon.wiring import assemble
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from sync.bus.memory import MemoryBroker
from sync.core.clock import ManualClock
from sync.core.types import SpokeId
from sync.protocol.topics import hub_rights, spoke_rights
from tests.spoke_agent.fakes import FakeServer

ME, DAY = SpokeId("dubai"), 86400
PAST, FUTURE = datetime(1970, 1, 2, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)


@pytest.fixture
def field(house):
    """The hub on the bus, and a spoke that is started under a given clock."""
    house.enrol("dubai")
    house.broker = MemoryBroker()
    bus = house.broker.client("hub", hub_rights())
    bus.connect()
    ingest = Ingest(house.hub, bus)
    ingest.start()
    publisher = BrokerPublisher(house.hub, bus)
    publisher.tick()
    yield house, publisher
    ingest.stop()
    bus.close()


def run(house, wall, until):
    """One life of the spoke's agent; returns what it holds at the end."""
    home = SpokeHome(house.folder / "spokes" / ME.username)
    bus = house.broker.client(ME.username, spoke_rights(ME, "me"))
    settings = SpokeSettings(tick_s=0.02, retry_s=0.05)
    server = FakeServer(home.slots, ManualClock())
    with assemble(home, settings, bus=bus, server=server, clock=ManualClock(wall)) as components:
        components.agent.begin()
        for _ in range(500):
            components.agent.turn()
            if until(components):
                break
        else:
            raise AssertionError(components.agent.last_refusal)
        components.agent.end()


def follows(house):
    def done(components):
        accepted = components.journal.directive()
        return accepted is not None and accepted.generation == generation(house)

    return done


def generation(house):
    with house.hub.database.begin() as db:
        return refresh_directive(db, house.hub.repository.director, ME, now=house.hub.now, life_s=7 * DAY).generation


@pytest.mark.parametrize("wall", [PAST, FUTURE], ids=["1970", "2036"])
@pytest.mark.parametrize("known", [True, False], ids=["heard the hub before", "fresh from the factory"])
def test_it_follows_the_hub_again_after_one_signed_answer(field, wall, known):
    house, publisher = field
    if known:
        run(house, house.clock.now(), follows(house))
        house.clock.advance(4 * DAY)
        publisher.refresh()
        generation(house)
        publisher.tick()
    run(house, wall, follows(house))
    with house.hub.database.read() as db:
        assert abs(find_spoke(db, ME).last_seen - house.hub.now) < DAY

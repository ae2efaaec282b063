"""What a site allows its transfers in a day holds on both roads; running out is said, and is nobody's failed try."""

import threading

import httpx
import pytest

from model_formats.core.types import digest_of
from model_formats.package.oci import Descriptor
from spoke_agent.daemon.wiring import manners
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.time_window import SiteHours
from spoke_agent.update.interfaces import FetchRequest
from spoke_agent.update.transport import HttpsTransport, MqttTransport, Transports
from sync.bus.memory import MemoryBroker
from sync.core.clock import ManualClock
from sync.core.types import Reason, SpokeId, State
from sync.protocol import topics
from sync.protocol.messages import DesiredModel
from sync.store import MemoryStore
from sync.transfer import BlobSender
from sync.transfer.limits import BudgetExhausted
from tests.spoke_agent.fakes import Rig

DATA = bytes(range(256)) * 1200
BLOB = Descriptor(digest_of(DATA), len(DATA), "application/octet-stream")
DESIRED = DesiredModel(model="digits", version=1, index=digest_of(b"index"))
ME = SpokeId("frankfurt")


@pytest.fixture
def hub():
    """A hub in memory that holds DATA: (bus of the spoke, client of the spoke)."""
    broker, store = MemoryBroker(), MemoryStore()
    store.put(DATA)
    bus, mine = broker.client("hub", topics.hub_rights()), broker.client(ME.username, topics.spoke_rights(ME, "eu"))
    bus.connect()
    mine.connect()
    sender = BlobSender(bus, store)
    sender.start()
    answers = httpx.MockTransport(lambda request: httpx.Response(200, content=DATA))
    with httpx.Client(transport=answers, base_url="https://hub") as client:
        yield mine, client
    sender.stop()
    mine.close()
    bus.close()
    store.close()


@pytest.mark.parametrize("choice", ["mqtt", "https"])
def test_a_used_up_budget_stops_either_road_until_tomorrow(hub, tmp_path, choice):
    bus, client = hub
    clock, store = ManualClock(), MemoryStore()
    settings = SpokeSettings(bytes_per_day=len(DATA), bytes_per_second=10**9, download_hours="00:00-23:59")
    pace = manners(SpokeHome(tmp_path), settings, SiteHours.of(settings, clock), clock)
    transports = Transports(MqttTransport(bus, "eu", ME, pace), HttpsTransport(lambda: client, pace), choice)
    pace.spend(len(DATA))
    with pytest.raises(BudgetExhausted):
        transports.fetch(FetchRequest(DESIRED, BLOB, store, threading.Event()))
    clock.advance(24 * 3600)
    assert transports.fetch(FetchRequest(DESIRED, BLOB, store, threading.Event())) == len(DATA)
    with pytest.raises(BudgetExhausted):  # what came today was counted
        pace.wait()


def test_an_update_goes_on_when_there_is_budget_again(tmp_path):
    rig = Rig(tmp_path, transfer_tries=3)
    nights = rig.clock.now().timestamp() + 24 * 3600

    def until_tomorrow(_blob):
        if rig.clock.now().timestamp() < nights:
            raise BudgetExhausted("all used up")

    rig.hub.on_fetch = until_tomorrow
    rig.want(1)
    rig.run(20 * 3600, step=300)
    assert rig.champion() is None
    rig.run(5 * 3600, step=300)
    assert rig.last().state is State.COMMITTED


def test_an_update_that_never_gets_its_bytes_ends_with_that_reason(tmp_path):
    rig = Rig(tmp_path, admit_timeout_s=3600)

    def never(_blob):
        raise BudgetExhausted("all used up")

    rig.hub.on_fetch = never
    rig.want(1)
    rig.run(2 * 3600, step=300)
    assert rig.last().reason is Reason.BUDGET_EXHAUSTED

"""`hub up` and a `hub worker` process on one database and one Mosquitto; then the worker is killed."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from hub.app.hub_process import HubServer
from hub.app.worker_process import HubWorker, WorkerRefused
from hub.config.home import HubHome
from hub.config.settings import HubSettings
from hub.services.enrolments import admit_spoke, invite_spoke
from hub.store.leases import take_lease
from hub.store.reports import list_reports
from provisioning.identity.enrol import begin, finish
from sync.bus.bus import Message
from sync.bus.mqtt import MqttBus
from sync.core.types import Reason, SpokeId, State
from sync.protocol import topics
from sync.protocol.messages import Report
from sync.trust.dsse import seal

pytestmark = pytest.mark.mosquitto
DUBAI = SpokeId("dubai")


@pytest.fixture
def server(home):
    with HubServer(home, HubSettings(tick_s=0.1, lease_s=1)) as running:
        yield running


@pytest.fixture
def worker(server, home):
    command = [sys.executable, "-c", "from hub.cli import main; main()", "--home", str(home.root), "worker", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"HUB_TICK_S": "0.1", "HUB_LEASE_S": "1"})
    yield process
    process.kill()
    process.communicate()


class Teller:
    """An enrolled spoke that tells as many reports as it is told to."""

    def __init__(self, server, folder):
        code = invite_spoke(server.hub, DUBAI, "me", "ae-pdpl", "test")
        self.me = finish(folder, admit_spoke(server.hub, begin(folder, code)))
        server.turn()
        self.bus = MqttBus("localhost", server.broker.port, DUBAI.username, self.me.tls)
        self.bus.connect(timeout=15)
        self.told = 0

    def tell(self, count):
        for _ in range(count):
            self.told += 1
            report = Report(
                site="dubai", spoke="main", sequence=self.told, nonce=f"{self.told:032x}", time=datetime.now(UTC), generation=1,
                model="digits", version=1, index="sha256:" + "ab" * 32, previous=State.ADMITTED, state=State.STAGING,
                reason=Reason.NONE, serving=(),
            )  # fmt: skip
            self.bus.publish(Message(topics.report(DUBAI), seal(report, self.me.signer()), qos=1))
        assert self.bus.flush(10)


def sequences(server):
    with server.hub.database.read() as db:
        return sorted(r.sequence for r in list_reports(db, DUBAI, limit=1000))


def test_two_share_the_work_and_one_goes_on_when_the_other_is_killed(server, worker, tmp_path, eventually):
    spoke = Teller(server, tmp_path / "dubai")
    assert json.loads("".join(iter(worker.stdout.readline, "}\n")) + "}")["worker"] == "hub-1"
    spoke.tell(20)
    eventually(lambda: sequences(server) == list(range(1, 21)))
    by_the_first = server.ingest.taken
    assert 0 < by_the_first < 20
    worker.kill()
    worker.wait()
    spoke.tell(20)
    eventually(lambda: sequences(server)[-1] == 40)
    assert sequences(server) == list(range(1, 41))
    assert server.ingest.taken >= by_the_first + 20
    eventually(lambda: lease(server, "turn"))
    spoke.bus.close()


def lease(server, name):
    """Whether somebody else than the killed one can have it by now."""
    with server.hub.database.begin() as db:
        return take_lease(db, name, server._owner, now=time.time(), life_s=1)


def test_three_may_join_and_a_place_is_free_again_when_one_leaves(server, home):
    settings = HubSettings(tick_s=60, lease_s=60)
    with HubWorker(home, settings) as first, HubWorker(home, settings) as second:
        with HubWorker(home, settings) as third:
            assert [one.name for one in (first, second, third)] == ["hub-1", "hub-2", "hub-3"]
            with pytest.raises(WorkerRefused, match="are at work"):
                HubWorker(home, settings).start()
        with HubWorker(home, settings) as again:
            assert again.name == "hub-3"


def test_without_a_hub_there_is_nothing_to_join(home):
    with pytest.raises(WorkerRefused, match="no hub runs"):
        HubWorker(HubHome(home.root), HubSettings()).start()

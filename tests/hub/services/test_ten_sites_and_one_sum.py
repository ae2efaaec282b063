"""The real hub, eleven real agents with real rows and outboxes, a bus between them: the hub learns the sum, and nothing else."""

import contextlib
import json
import shutil
import time
from datetime import UTC, datetime, timedelta

import anyio
import httpx
import numpy as np
import pytest

from hub.app.worker_process import serve_bus
from hub.cli.federated import _show
from hub.config.settings import HubSettings
from hub.rules.access import Role
from hub.services import federated
from hub.services.broker_publisher import BrokerPublisher
from hub.services.directives import refresh_directive
from hub.services.enrolments import allowed_spokes, revoke
from hub.services.federated import QuestionInvalid, Terms
from hub.services.releases import ReleaseRequest, propose_release
from hub.store.directives import Assignment, assign
from hub.store.egress import list_egress
from hub.store.federated_questions import find_question
from hub.store.tokens import make_token
from hub.train.datasets import digits
from model_formats.core.types import ModelRef
from model_formats.package import open_package
from model_formats.signing.signature import sign_package
from model_formats.statistics.federated_sums import SumsInvalid
from provisioning.brokers.mosquitto import Broker
from spoke_agent.daemon.maintenance import open_outbox
from spoke_agent.daemon.wiring import assemble
from spoke_agent.data.crypto import load_site_key
from spoke_agent.data.store import RowBatch, open_data
from spoke_agent.federated.respondent import Respondent, ZoneMember
from spoke_agent.federated.rounds import Rounds
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.slots import read_slots
from sync.bus.memory import MemoryBroker
from sync.bus.mqtt import MqttBus
from sync.core.types import SpokeId
from sync.protocol import topics
from sync.protocol.messages import DesiredModel, ProbationTerms
from sync.protocol.topics import hub_rights, spoke_rights
from tests.samples.adaptable import packed_adaptable
from tests.samples.cohort import released
from tests.spoke_agent.fakes import FakeServer

REF = ModelRef("digits", 1)
OPTED_IN = "epsilon_per_day: 9\nepsilon_per_30_days: 90\nallow: [{kind: masked_sum, consent: board-7}]\n"
ROWS = 40


class MemoryLine:
    """Hub and spokes on the broker in memory, with the access list of the real one."""

    def __init__(self, house):
        self.broker = MemoryBroker()
        self.hub = self.broker.client("hub", hub_rights())

    def site(self, stack, region, identity, layout):
        bus = self.broker.client(identity.spoke.username, spoke_rights(identity.spoke, identity.zone))
        return BareSite(stack, region, identity, bus, open_package(layout, region.index))

    def close(self):
        pass


class MosquittoLine:
    """Mosquitto, mutual TLS and its generated access list; the first three sites have whole agents that follow directives."""

    def __init__(self, house):
        self.whole = 3
        ca, folder, now = house.hub.ca, house.folder / "line", house.clock.now()
        self.broker = Broker(folder / "broker", ca.issue_server(folder / "tls", ["localhost"], now=now))
        self.broker.start(allowed_spokes(house.hub))
        self.hub = MqttBus("localhost", self.broker.port, "hub", ca.issue_client(folder / "tls", "hub", now=now))

    def site(self, stack, region, identity, layout):
        bus = MqttBus("localhost", self.broker.port, identity.spoke.username, identity.tls)
        self.whole -= 1
        if self.whole < 0:
            return BareSite(stack, region, identity, bus, open_package(layout, region.index))
        home, settings = SpokeHome(identity.folder.parent), SpokeSettings(tick_s=0.001, retry_s=0.05, upkeep_s=0.01)
        shutil.copytree(layout.folder / "blobs", home.store / "blobs", dirs_exist_ok=True)  # so that the test is about sums
        server = FakeServer(home.slots, region.clock)
        return stack.enter_context(WholeSite.at(home, settings, bus, server, region.clock))

    def close(self):
        self.broker.stop()


class BareSite:
    """Rows, outbox and respondent of a site, without the machinery of updates."""

    serves = True

    def __init__(self, stack, region, identity, bus, package):
        home, self._heard = identity.folder.parent, []
        bus.connect(timeout=15)
        self.data = open_data(home, now=lambda: region.clock.now().timestamp())
        self.outbox = open_outbox(home, identity, region.clock, bus=bus, ceiling=lambda: region.hub.ceiling)
        self._respondent = Respondent(
            ZoneMember(identity.spoke, identity.zone, identity.tls.ca.read_bytes),
            Rounds(home / "federated", load_site_key(home)),
            outbox=self.outbox,
            data=self.data,
            released=lambda: released(region.clock.now(), director=region.hub.repository.director),
            package=lambda index: package if index == region.index else None,
        )
        for pattern in (topics.question(identity.zone, "+"), topics.cohort(identity.zone, "+")):
            bus.subscribe(pattern, self._heard.append)
        for part in (self.data, self.outbox, bus):
            stack.callback(part.close)

    def turn(self):
        while self._heard:
            message = self._heard.pop(0)
            self._respondent.hear(message.topic, message.payload)
        self._respondent.tick()


class WholeSite:
    """A whole agent, as `spoke run` has it."""

    def __init__(self, components, slots):
        self._parts, self._slots = components, slots
        self.data, self.outbox = components.data, components.outbox

    @classmethod
    @contextlib.contextmanager
    def at(cls, home, settings, bus, server, clock):
        with assemble(home, settings, bus=bus, server=server, clock=clock) as components:
            components.agent.begin()
            yield cls(components, home.slots)
            components.agent.end()

    @property
    def serves(self):
        champion = read_slots(self._slots).models.get("digits")
        return champion is not None and champion.champion is not None

    def turn(self):
        self._parts.agent.turn()


class Region:
    """A hub that may ask, and sites that serve digits, each with rows of its own."""

    def __init__(self, house, stack, line, policies, clock):
        self.house, self.hub, self.clock = house, house.hub, clock
        self.hub.settings = HubSettings(federated=True)
        clock.set(datetime.now(UTC))  # certificates are checked by Mosquitto at the time of the day
        layout, self.index = packed_adaptable(house.folder / "package")
        self._release(layout)
        self.devices = {name: house.enrol(name, "eu", "gdpr") for name in policies}
        self.line = line(house)
        stack.callback(self.line.close)
        self.line.hub.connect(timeout=15)
        stack.callback(self.line.hub.close)
        self.ingest = serve_bus(self.hub, self.line.hub, stack)
        self.publisher = BrokerPublisher(self.hub, self.line.hub)
        shares = digits()
        images, labels = shares.held_out.inputs["image"], shares.held_out.labels
        self.labels, self.images, self.sites = {}, {}, {}
        for number, (name, policy) in enumerate(policies.items()):
            chosen = np.arange(number * 7, number * 7 + ROWS) % len(images)
            self.images[name], self.labels[name] = images[chosen], labels[chosen]
            self.sites[name] = self._start(stack, name, policy, layout)
        self.publisher.refresh()
        self.publisher.tick()
        self.until(lambda: all(site.serves for site in self.sites.values()))

    def _release(self, layout):
        self.house.approver()
        for blob in (layout.folder / "blobs" / "sha256").iterdir():
            self.hub.registry.put_blob("digits", blob.read_bytes())
        signature = self.hub.registry.put_blob("digits", sign_package(layout, self.index, self.house.publisher))
        request = ReleaseRequest(REF, self.index, signature, self.house.publisher.policy, (), ())
        assert self.house.sign(propose_release(self.hub, request, "test"), "model-digits").complete

    def _start(self, stack, name, policy, layout):
        identity = self.devices[name].identity
        if policy is not None:
            (identity.folder.parent / "egress.yaml").write_text(policy)
        probation = ProbationTerms(soak_s=0)
        desired = DesiredModel(model="digits", version=1, index=self.index, transport="mqtt", probation=probation)
        with self.hub.database.begin() as db:
            assign(db, Assignment(identity.spoke, REF, self.index, None, None, desired, self.hub.now, 1, None))
            director, ceiling = self.hub.repository.director, self.hub.ceiling
            refresh_directive(db, director, identity.spoke, now=self.hub.now, life_s=86400, ceiling=ceiling)
        site = self.line.site(stack, self, identity, layout)
        self._serve(site.data, name)
        return site

    def _serve(self, data, name):
        labels = self.labels[name]
        logits = np.eye(10, dtype=np.float32)[labels]
        times = np.full(ROWS, self.hub.now - 3600)
        ids = [f"{name}-{i}" for i in range(ROWS)]
        data.append(RowBatch("digits", 1, self.index, ids, times, {"image": self.images[name]}, {"logits": logits}))
        data.label_rows({i: float(c) for i, c in zip(ids, labels, strict=True)})

    def ask(self, statistic="label_counts", **changes):
        now = self.hub.clock.now()
        fields = {"ref": REF, "statistic": statistic, "zone": "eu", "start": now - timedelta(hours=2), "end": now, "name": "q"}
        return federated.ask(self.hub, Terms(**(fields | changes)), "test").question

    def until(self, done, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, [str(e.entry.why) for s in self.sites.values() for e in s.outbox.log.entries()]
            self.turn()

    def turn(self):
        federated.tick(self.hub)
        self.publisher.tick()
        for site in self.sites.values():
            self.clock.advance(0.01)
            site.turn()

    def said(self, kind):
        with self.hub.database.read() as db:
            return [k.record for k in list_egress(db, kind=kind)]

    def state(self, name="q"):
        with self.hub.database.read() as db:
            return find_question(db, name).state.value

    def gathered(self, sites):
        self.until(lambda: len(self.said("masked_key")) == sites)
        self.clock.advance(3600)

    def get(self, path):
        from hub.app.asgi import create_app

        with self.hub.database.begin() as db:
            token = make_token(db, "viewer", frozenset({Role.VIEWER}), now=self.hub.now)[1]

        async def go():
            transport = httpx.ASGITransport(create_app(self.hub), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="https://hub") as client:
                return await client.get(path, headers={"Authorization": f"Bearer {token}"})

        return anyio.run(go).json()


@pytest.fixture
def region(house, clock):
    """Make one: `region(policies, line)`."""
    with contextlib.ExitStack() as stack:
        yield lambda policies, line=MemoryLine: Region(house, stack, line, policies, clock)


def answers(site):
    return [(e.entry.asked, e.entry.why.value) for e in site.outbox.log.entries() if e.entry.asked.startswith("masked")]


def sites(number, policy=OPTED_IN):
    return dict.fromkeys((f"site-{i:02}" for i in range(number)), policy)


def test_the_hub_learns_the_sum_of_ten_sites_and_the_eleventh_stays_out(region, capsys):
    world = region({"shy": None, **sites(10)}, MosquittoLine)
    world.ask()
    world.until(lambda: answers(world.sites["shy"]))
    world.gathered(10)
    world.until(lambda: world.state() == "answered")
    found = world.get("/api/v1/federated/q")
    told = found["result"]["parts"][0]
    true = np.bincount(np.concatenate([world.labels[f"site-{i:02}"] for i in range(10)]), minlength=10)
    assert [c is not None for c in told["cells"]] == [True] * 10
    assert np.abs(np.array(told["cells"]) - true).max() <= 6 * told["noise"]
    assert {m["spoke"] for m in found["members"]} == {f"site-{i:02}/main" for i in range(10)}
    shares = [r.body.values for r in world.said("masked_sum")]
    assert len(shares) == 10
    assert min(min(values) for values in shares) > 1_000_000  # counts under 40 would be there if a mask were missing
    _show(found)
    assert "over 10 sites, noise of epsilon 1 from each" in capsys.readouterr().out
    assert answers(world.sites["shy"]) == [("masked_key", "not_in_site_policy")]
    log = world.sites["site-00"].outbox.log  # a whole agent: the hub's receipts came over the bus
    world.until(lambda: log.verify().receipted == log.verify().left > 0)


def test_nine_sites_are_not_added_up(region):
    world = region(sites(9))
    world.ask()
    world.gathered(9)
    world.until(lambda: world.state() == "too_few")
    assert world.said("masked_sum") == []


def test_a_sum_that_lacks_one_share_is_never_opened_and_its_rows_are_not_asked_again(region):
    world = region(sites(11))
    question = world.ask()
    world.until(lambda: len(world.said("masked_key")) == 11)
    lost = world.sites.pop("site-10")
    world.clock.advance(3600)
    world.until(lambda: len(world.said("masked_sum")) == 10)
    for _ in range(3):
        world.turn()
    assert world.state() == "summing"
    world.clock.advance(86_400)
    world.until(lambda: world.state() == "incomplete")
    assert world.get("/api/v1/federated/q")["result"] is None
    federated.ask(world.hub, Terms(REF, "label_counts", "eu", question.start, question.end, name="again"), "test")
    refused = ("masked_key", "window_overlaps")
    world.until(lambda: all(answers(site)[-1] == refused for site in world.sites.values()))
    assert lost.outbox.log.spoken_until("masked_sum", "digits") is None


def test_moments_are_those_of_all_rows_and_each_site_counts_once_and_none_that_was_revoked(region, house):
    world = region({**sites(11), "site-00/second": OPTED_IN})
    world.ask("feature_moments", features=("image.mean",), epsilon=9.0)
    world.until(lambda: len(world.said("masked_key")) == 12)
    revoke(house.hub, SpokeId("site-10"), "test")
    world.sites.pop("site-10")
    world.clock.advance(3600)
    world.until(lambda: world.state() == "answered")
    found = world.get("/api/v1/federated/q")
    members = [m["spoke"].replace("/main", "") for m in found["members"]]
    assert sorted(m.split("/")[0] for m in members) == [f"site-{i:02}" for i in range(10)]
    every = np.concatenate([world.images[m] for m in members]).reshape(10 * ROWS, -1).mean(axis=1)
    (told,) = found["result"]["parts"]
    assert abs(told["mean"] - every.mean()) <= 6 * told["mean_noise"] + 0.02
    assert told["mean_noise"] < 0.5
    assert abs(told["rows"] - 10 * ROWS) <= 6 * told["noise"]


def test_what_cannot_be_asked_is_refused_with_its_reason(region, house):
    world = region({})
    for changes, told in (
        ({"zone": "mars"}, "not a zone"),
        ({"ref": ModelRef("digits", 9)}, "not released"),
        ({"features": ("salary",)}, "no column salary"),
        ({"end": world.hub.clock.now() + timedelta(hours=1)}, "start < end"),
        ({"min_sites": 9}, "min_sites"),
        ({"epsilon": 0.0}, "epsilon_milli"),
    ):
        with pytest.raises(QuestionInvalid, match=told):
            world.ask(**changes)
    with pytest.raises(SumsInvalid):
        world.ask(features=("image.mean",))
    world.ask()
    with pytest.raises(QuestionInvalid, match="exists"):
        world.ask()
    world.hub.settings = HubSettings()
    with pytest.raises(QuestionInvalid, match="does not ask"):
        world.ask(name="other")


def test_a_hub_that_may_not_ask_says_so_in_every_directive(region):
    def kinds(world, device):
        from hub.store.directives import find_directive

        with world.hub.database.read() as db:
            envelope = find_directive(db, device.spoke).envelope
        import base64

        return json.loads(base64.b64decode(json.loads(envelope)["payload"]))["egress"]["kinds"]

    world = region({})
    device = world.house.enrol("site-00", "eu", "gdpr")
    assert {"masked_key", "masked_sum"} <= set(kinds(world, device))
    world.hub.settings = HubSettings()
    other = world.house.enrol("site-01", "eu", "gdpr")
    assert not {"masked_key", "masked_sum"} & set(kinds(world, other))
    world.hub.settings = HubSettings(federated=True)
    world.ask()
    assert {"masked_key", "masked_sum"} <= set(kinds(world, other))

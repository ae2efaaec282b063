import pytest

from hub.services.directives import SpokeUnknown
from hub.services.enrolments import revoke
from hub.services.ingest import Ingest, take_report, take_status
from hub.store.audit import read_audit
from hub.store.reports import latest_about, list_reports
from hub.store.spokes import find_spoke
from model_formats.core.document import DocumentRefused
from sync.bus.bus import Message
from sync.bus.memory import MemoryBroker
from sync.core.types import Reason, SpokeId, State
from sync.protocol import topics
from sync.protocol.messages import Status
from sync.protocol.topics import hub_rights, spoke_rights
from sync.trust.dsse import unseal
from sync.trust.errors import EnvelopeRefused, ReportRefused
from sync.trust.freshness import TimeAnswer


@pytest.fixture
def dubai(house):
    device = house.enrol("dubai")
    device.index = house.release(1)
    return device


def kept(house, spoke):
    with house.hub.database.read() as db:
        return list_reports(db, spoke), find_spoke(db, spoke)


def lines(house):
    with house.hub.database.read() as db:
        return len(list(read_audit(db)))


def refused_lines(house):
    with house.hub.database.read() as db:
        return [(line.who, line.what) for line, _ in read_audit(db) if line.action == "message.refused"]


def test_a_signed_report_is_kept_whole_and_tells_what_is_served(house, dubai):
    dubai.commits(dubai.index, labelled=20, labelled_correct=19)
    (report,), spoke = kept(house, dubai.spoke)
    assert (report.state, report.evidence.labelled) == (State.COMMITTED, 20)
    assert [(s.model, s.version) for s in spoke.serving] == [("digits", 1)]


def test_the_same_report_again_changes_nothing(house, dubai):
    dubai.serves(dubai.index)
    first, second = dubai.sealed(dubai.index), dubai.sealed(dubai.index, state=State.FAILED, reason=Reason.GOLDEN_MISMATCH)
    for sealed in (first, second):
        take_report(house.hub, dubai.spoke, sealed)
    before = kept(house, dubai.spoke), lines(house)
    house.clock.advance(60)
    for _ in range(3):
        take_report(house.hub, dubai.spoke, first)
    assert (kept(house, dubai.spoke), lines(house)) == before


def test_neighbours_may_come_in_either_order_and_are_put_in_theirs(house, dubai):
    first = dubai.sealed(dubai.index, state=State.STAGING)
    dubai.commits(dubai.index)
    house.clock.advance(1)
    take_report(house.hub, dubai.spoke, first)
    reports, spoke = kept(house, dubai.spoke)
    assert [r.state for r in reports] == [State.COMMITTED, State.STAGING]
    assert (spoke.last_sequence, len(spoke.serving)) == (2, 1)
    with house.hub.database.read() as db:
        assert latest_about(db, "digits", dubai.index)[dubai.spoke].state is State.COMMITTED


def test_a_replay_a_foreign_signature_and_a_contradiction_are_refused(house, dubai):
    dubai.serves(dubai.index)
    take_report(house.hub, dubai.spoke, dubai.sealed(dubai.index))
    dubai.sequence = 0
    with pytest.raises(ReportRefused, match="seen before"):  # another text under a known nonce
        take_report(house.hub, dubai.spoke, dubai.sealed(dubai.index, generation=98))
    old, dubai.sequence = dubai.sealed(dubai.index), 500
    take_report(house.hub, dubai.spoke, dubai.sealed(dubai.index))
    with pytest.raises(ReportRefused, match="seen before"):
        take_report(house.hub, dubai.spoke, old)
    frankfurt = house.enrol("frankfurt", "eu", "gdpr")
    with pytest.raises(EnvelopeRefused):
        take_report(house.hub, frankfurt.spoke, dubai.sealed(dubai.index))
    dubai.serving = ()
    with pytest.raises(ReportRefused, match="not served"):
        take_report(house.hub, dubai.spoke, dubai.sealed(dubai.index))
    assert len(kept(house, dubai.spoke)[0]) == 2


def test_a_revoked_and_an_unknown_spoke_are_not_heard(house, dubai):
    revoke(house.hub, dubai.spoke, "ann")
    with pytest.raises(SpokeUnknown):
        dubai.commits(dubai.index)
    with pytest.raises(SpokeUnknown):
        take_report(house.hub, SpokeId("paris"), b"{}")


def test_a_status_is_only_a_hint(house, dubai):
    dubai.status()
    assert kept(house, dubai.spoke)[1].online
    dubai.status(online=False)
    spoke = kept(house, dubai.spoke)[1]
    assert (spoke.online, spoke.serving) == (False, ())
    with pytest.raises(DocumentRefused):
        take_status(house.hub, dubai.spoke, b'{"online": 1}')


def test_over_the_bus_refusals_are_noted_once_and_the_rest_goes_on(house, dubai, eventually):
    broker = MemoryBroker()
    bus, spoke_bus = broker.client("hub", hub_rights()), broker.client("dubai.main", spoke_rights(dubai.spoke, "me"))
    for one in (bus, spoke_bus):
        one.connect()
    ingest = Ingest(house.hub, bus)
    ingest.start()
    topic = topics.report(dubai.spoke)
    for _ in range(3):
        spoke_bus.publish(Message(topic, b"nonsense"))
    dubai.serves(dubai.index)
    spoke_bus.publish(Message(topic, dubai.sealed(dubai.index)))
    eventually(lambda: kept(house, dubai.spoke)[0])
    ingest.stop()
    assert refused_lines(house) == [("dubai/main", "envelope_invalid")]


LIES = {
    "a report replayed as a newer one": (Reason.REPORT_REPLAYED, lambda d: _again(d)),
    "a file that is none of the package": (
        Reason.REPORT_CONTRADICTS,
        lambda d: _claims(d, file="sha256:" + "f" * 64),
    ),
    "a commit of what another version's index says": (
        Reason.REPORT_CONTRADICTS,
        lambda d: _claims(d, index="sha256:" + "e" * 64),
    ),
}


def _again(device):
    device.sequence = 0
    return device.sealed(device.index, generation=98)


def _claims(device, **changes):
    device.serving = tuple(s.replace(**changes) for s in device.serving)
    return device.sealed(device.index)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_noted_with_its_reason_and_what_was_known_stays(house, dubai, lie, eventually):
    reason, tell = LIES[lie]
    dubai.commits(dubai.index)
    before = kept(house, dubai.spoke)
    ingest = Ingest(house.hub, MemoryBroker().client("hub", hub_rights()))
    ingest.take(Message(topics.report(dubai.spoke), tell(dubai)))
    assert kept(house, dubai.spoke) == before
    with house.hub.database.read() as db:
        (noted,) = [line.details["reason"] for line, _ in read_audit(db) if line.action == "message.refused"]
    assert noted == reason


def test_a_forged_last_will_claims_no_version_and_takes_none_away(house, dubai):
    """Whoever could publish in a spoke's name says that it is gone, then that it serves something else."""
    dubai.commits(dubai.index)
    before = kept(house, dubai.spoke)[1].serving
    dubai.status(online=False)
    claim = tuple(s.replace(version=9, index="sha256:" + "9" * 64) for s in before)
    lie = Status(site="dubai", spoke="main", online=True, time=house.clock.now(), serving=claim)
    take_status(house.hub, dubai.spoke, lie.canonical())
    assert kept(house, dubai.spoke)[1].serving == before


def test_the_wake_is_set_so_that_rollouts_look_at_once(house, dubai):
    house.hub.wake.clear()
    dubai.commits(dubai.index)
    assert house.hub.wake.is_set()


def test_a_spoke_that_asks_gets_the_time_signed_by_the_director(house, dubai, eventually):
    broker, got = MemoryBroker(), []
    bus, spoke_bus = broker.client("hub", hub_rights()), broker.client("dubai.main", spoke_rights(dubai.spoke, "me"))
    for one in (bus, spoke_bus):
        one.connect()
    ingest = Ingest(house.hub, bus)
    ingest.start()
    spoke_bus.subscribe(topics.time(dubai.spoke), lambda m: got.append(m.payload))
    asks = Status(site="dubai", spoke="main", online=True, time=house.clock.now(), asks_time="a" * 32)
    spoke_bus.publish(Message(topics.status(dubai.spoke), asks.canonical()))
    eventually(lambda: got)
    ingest.stop()
    answer = unseal(got[0], [house.hub.repository.director.public_key], TimeAnswer)
    assert (answer.nonce, answer.time) == ("a" * 32, house.clock.now())

import contextlib
import json
import sqlite3
import threading
from datetime import timedelta

import pytest

from spoke_agent.daemon.agent import AgentRunning
from spoke_agent.daemon.wiring import assemble
from spoke_agent.outbox.policy import POLICY_FILE, turn_switch
from spoke_agent.server_api.messages import ShadowStats
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.slots import read_slots
from sync.bus.bus import Message
from sync.core.clock import SystemClock
from sync.protocol import topics
from sync.protocol.messages import Directive, EgressReceipt, ProbationTerms
from sync.trust.dsse import seal
from sync.trust.keys import fingerprint, role_signer
from tests.spoke_agent.daemon.conftest import ME
from tests.spoke_agent.fakes import Behaviour

GOOD = ["admitted", "staging", "verified", "shadow", "armed", "probation", "committed"]


def _receipt(field, sequence, *, signer=None, **changes):
    identity = field.hub.identities[ME]
    digest = "sha256:" + "ab" * 32
    fields = {
        "site": ME.site, "spoke": ME.spoke, "device": fingerprint(identity.certificate), "sequence": sequence, "record": digest,
        "time": field.hub.clock.now().replace(microsecond=0),
    }  # fmt: skip
    data = seal(EgressReceipt(**(fields | changes)), signer or field.hub.repository.director)
    field.hub.bus.publish(Message(topics.receipt(ME), data, retain=True))


def test_only_the_hubs_own_receipt_for_this_device_is_kept(field):
    index = field.package(1)
    components = field.start()
    field.hub.want(ME, index, 1)
    field.settled()
    _receipt(field, 7, signer=role_signer())
    _receipt(field, 8, device="sha256:" + "cd" * 32)
    _receipt(field, 9, site="dubai")
    _receipt(field, 4)
    field.until(components.outbox.log.receipts)
    assert [r.sequence for r in components.outbox.log.receipts()] == [4]


def test_a_released_version_comes_over_the_bus_and_is_reported_step_by_step(field):
    index = field.package(1)
    field.start()
    field.hub.want(ME, index, 1)
    field.settled()
    assert field.hub.chain(ME) == GOOD
    last = field.hub.reports[ME][-1]
    assert last.serving[0].index == index
    assert last.evidence.bytes_received >= 300_000
    assert read_slots(field.home.slots).models["digits"].champion.index == index


def test_reports_are_sent_again_until_they_are_acknowledged_and_then_kept_no_longer(field):
    index = field.package(1)
    components = field.start()
    field.hub.want(ME, index, 1)
    field.settled()
    field.until(lambda: not components.journal.unacknowledged())
    assert len(components.journal.latest()) == 1


def test_after_a_reconnect_the_last_word_is_said_again(field):
    index = field.package(1)
    field.start()
    field.hub.want(ME, index, 1)
    field.settled()
    field.hub.raw.clear()
    field.broker.cut(field.bus)
    field.broker.heal(field.bus)
    field.until(lambda: field.hub.raw)
    assert len(field.hub.chain(ME)) == len(GOOD)


def test_a_directive_that_came_while_the_spoke_was_away_is_followed_at_the_next_start(field):
    index = field.package(1)
    field.start()
    field.stop()
    field.hub.want(ME, index, 1)
    field.start()
    field.settled()


def test_a_directive_that_the_journal_would_not_take_is_followed_next_turn(field):
    """Another process holds the journal's lock for longer than SQLite waits."""
    index = field.package(1)
    field.start()
    with contextlib.closing(sqlite3.connect(field.home.journal, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        field.hub.want(ME, index, 1)
        field.until(lambda: "journal.db" in field.components.agent.last_refusal)
        assert field.components.agent.controller.directive is None
        other.execute("ROLLBACK")
    field.settled()


def test_metadata_that_the_disk_would_not_take_is_believed_next_turn(field):
    """A folder stands where the file of the trusted set is to be put."""
    field.start()
    file = field.home.trust / "trusted.json"
    file.unlink(missing_ok=True)
    file.mkdir(parents=True)
    index = field.package(1)
    field.until(lambda: "trusted.json" in field.components.agent.last_refusal and field.components.inbox.empty)
    file.rmdir()
    field.hub.want(ME, index, 1)
    field.settled()


def test_an_agent_tidies_up_when_it_starts(field):
    index = field.package(1)
    components = field.start()
    field.hub.want(ME, index, 1)
    field.settled()
    stray = components.store.put(b"a removal that a power cut undid")
    field.stop()
    assert not field.start().store.has(stray)


def test_the_broker_may_restart_in_the_middle(field):
    index = field.package(1)
    field.start()
    field.hub.want(ME, index, 1)
    field.until(lambda: "admitted" in field.hub.chain(ME) or field.components.journal.history())
    field.broker.stop()
    field.broker.start()
    field.settled()


def test_a_worse_version_goes_back_by_itself_and_the_hub_hears_why(field):
    first, second = field.package(1), field.package(2)
    field.start()
    field.hub.want(ME, first, 1)
    field.settled()
    field.server.behaviour[2] = Behaviour(golden=False)
    field.hub.want(ME, second, 2)
    field.settled("failed")
    last = field.hub.reports[ME][-1]
    assert (str(last.reason), last.serving[0].version) == ("golden_mismatch", 1)


def _mirrored(field):
    """Serve version 1, bring version 2 with rows mirrored on the way; the reports about 2."""
    first, second = field.package(1), field.package(2)
    field.hub.want(ME, first, 1)
    field.settled()
    field.server.behaviour[2] = Behaviour(shadow=ShadowStats(rows=40, disagreements=3))
    field.hub.want(ME, second, 2)
    field.until(lambda: _committed(field, 2))
    return [r.evidence for r in field.hub.reports[ME] if r.version == 2]


def test_reports_tell_what_was_counted_on_the_way(field):
    field.start()
    last = _mirrored(field)[-1]
    assert (last.shadow_rows, last.shadow_disagreements, last.withheld) == (40, 3, False)


@pytest.mark.parametrize("switch", ["sealed", "verdict_only"])
def test_a_site_that_turns_its_switch_tells_no_count_of_rows_in_reports_either(field, switch):
    field.start()
    turn_switch(field.home.root, ME.site, "gdpr", switch)
    told = _mirrored(field)
    assert all(e.withheld for e in told)
    assert not any(e.shadow_rows or e.shadow_disagreements or e.probation_requests or e.labelled for e in told)
    assert told[-1].bytes_received, "what the update itself cost is no word about anybody"
    assert field.components.journal.update("digits").evidence.shadow_rows == 40, "the site itself judges by all it knows"


def test_under_a_policy_that_cannot_be_read_no_count_of_rows_is_told(field):
    field.start()
    (field.home.root / POLICY_FILE).write_text("allow: everything")
    assert all(e.withheld and not e.shadow_rows for e in _mirrored(field))


def test_an_abort_by_the_hub_puts_the_version_before_back(field):
    first, second = field.package(1), field.package(2, fallback=[1])
    field.start()
    for index, version in ((first, 1), (second, 2)):
        field.hub.want(ME, index, version)
        field.until(lambda version=version: _committed(field, version))
    field.hub.want(ME, first, 1)
    field.until(lambda: field.hub.reports[ME][-1].generation == field.hub.generation)
    chain = [(r.version, str(r.state), str(r.reason)) for r in field.hub.reports[ME][-2:]]
    assert chain == [(2, "rolled_back", "reverted_by_hub"), (1, "committed", "none")]
    assert field.hub.reports[ME][-2].evidence.rollback_ms < 1000


def _committed(field, version):
    last = field.hub.reports[ME][-1:]
    return last and (last[0].version, str(last[0].state)) == (version, "committed")


def _forged(field, index):
    return field.hub.directive(ME, _model(field, index))


def _model(field, index):
    from sync.protocol.messages import DesiredModel

    return DesiredModel(model="digits", version=2, index=index, transport="mqtt", probation=ProbationTerms(soak_s=0))


BAD = {
    "signed by another key": ("directive_untrusted", lambda f, d: seal(d, role_signer())),
    "for another site": (
        "wrong_recipient",
        lambda f, d: seal(d.replace(site="dubai"), f.hub.repository.director),
    ),
    "of an old generation": (
        "directive_replayed",
        lambda f, d: seal(d.replace(generation=1), f.hub.repository.director),
    ),
    "expired": (
        "directive_expired",
        lambda f, d: seal(d.replace(expires=d.issued.replace(year=2001)), f.hub.repository.director),
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_directive_is_refused_and_told_and_changes_nothing(field, fault):
    reason, spoil = BAD[fault]
    first, second = field.package(1), field.package(2)
    field.start()
    field.hub.generation = 5
    field.hub.want(ME, first, 1)
    field.settled()
    envelope = json.loads(field.hub.directive(ME, _model(field, second)))
    import base64

    good = Directive.parse(base64.b64decode(envelope["payload"]))
    field.hub.send(ME, spoil(field, good))
    field.until(lambda: str(field.hub.reports[ME][-1].reason) == reason)
    assert field.hub.reports[ME][-1].serving[0].version == 1
    assert field.components.journal.generation == 6


def test_a_version_not_released_for_the_zone_is_rejected(field):
    index = field.package(1, zones=["me"])
    field.start()
    field.hub.want(ME, index, 1)
    field.settled("rejected")
    assert str(field.hub.reports[ME][-1].reason) == "zone_forbidden"


def test_a_version_the_hub_did_not_release_is_rejected(field):
    field.package(1)
    field.start()
    field.hub.want(ME, "sha256:" + "0" * 64, 7)
    field.settled("rejected")
    assert str(field.hub.reports[ME][-1].reason) == "not_released"


def test_a_denied_version_stops_serving_where_there_is_a_better_one(field):
    first, second = field.package(1), field.package(2, fallback=[1])
    field.start()
    for index, version in ((first, 1), (second, 2)):
        field.hub.want(ME, index, version)
        field.until(lambda version=version: _committed(field, version))
    field.hub.repository.deny(second)
    field.hub.publish()
    field.until(lambda: str(field.hub.reports[ME][-1].reason) == "denied")
    assert read_slots(field.home.slots).models["digits"].champion.index == first


def test_a_second_agent_on_the_same_home_is_refused(field):
    field.start()
    with pytest.raises(AgentRunning, match=r"agent\.lock"), assemble(field.home, SpokeSettings(), bus=field.bus):
        pass


def test_the_last_will_and_the_goodbye_say_offline(field):
    field.package(1)
    field.start()
    field.until(lambda: field.hub.statuses and field.hub.statuses[-1].online)
    field.broker.cut(field.bus)
    _heard(field, online=False)
    field.broker.heal(field.bus)
    field.until(lambda: field.hub.statuses[-1].online)
    field.stop()
    _heard(field, online=False)


def _heard(field, *, online):
    done = threading.Event()
    subscription = field.hub.bus.subscribe(
        topics.status(ME), lambda m: done.set() if (b'"online":false' in m.payload) is not online else None
    )
    assert done.wait(10)
    subscription.cancel()


def test_garbage_on_the_bus_is_no_reason_to_fall(field):
    index = field.package(1)
    field.start()
    for payload in (b"", b"{}", b"\xff" * 100, b"[" * 10_000):
        field.hub.bus.publish(Message(topics.desired(ME), payload))
        field.hub.bus.publish(Message(topics.tuf("eu", "timestamp.json"), payload))
    field.until(lambda: field.components.agent.last_refusal)
    field.hub.publish()
    field.hub.want(ME, index, 1)
    field.settled()


def test_a_cancel_stops_a_transfer_within_a_second(field):
    import time

    first, second = field.package(1), field.package(2)
    field.start()
    field.hub.want(ME, first, 1)
    field.settled()
    field.hub.sender.stop()
    field.hub.want(ME, second, 2)
    field.until(lambda: field.hub.chain(ME)[-1] == "admitted")
    began = time.monotonic()
    field.hub.want(ME, first, 1)
    field.until(lambda: field.hub.chain(ME)[-1] == "committed")
    assert time.monotonic() - began < 5
    assert [str(r.reason) for r in field.hub.reports[ME][-2:]] == ["reverted_by_hub", "none"]


class WrongClock(SystemClock):
    """A battery that gave up."""

    def __init__(self, years):
        self._wrong = timedelta(days=365 * years)

    def now(self):
        return super().now() + self._wrong


@pytest.mark.parametrize("years", [-8, 12])
def test_a_clock_that_is_wrong_by_years_is_set_right_by_the_hub_and_the_update_goes_on(field, years):
    first, second = field.package(1), field.package(2)
    field.start()
    field.hub.want(ME, first, 1)
    field.settled()
    field.stop()
    field.start(clock=WrongClock(years))
    field.hub.want(ME, second, 2)
    field.until(lambda: _committed(field, 2))
    off = field.components.verifier.store.now() - SystemClock().now()
    assert abs(off) < timedelta(hours=1)

"""A lost site key, a full disk: what needs the data waits and is told; the spoke follows its hub, and nothing leaves unlogged."""

import logging

from spoke_agent.doctor import examine
from tests.spoke_agent.daemon.conftest import ME


def test_a_spoke_that_lost_its_site_key_takes_the_next_version(field, caplog):
    first, second = field.package(1), field.package(2)
    field.start()
    field.hub.want(ME, first, 1)
    field.settled()
    field.stop()
    (field.home.identity / "site.key").unlink()
    with caplog.at_level(logging.ERROR, "spoke_agent.daemon.wiring"):
        components = field.start()
    assert components.data is None
    assert [r.getMessage() for r in caplog.records] == ["data.lost"]
    field.hub.want(ME, second, 2)
    field.until(lambda: field.hub.reports[ME][-1].version == 2 and field.hub.chain(ME)[-1] == "committed")
    assert not (field.home.identity / "site.key").exists()
    assert "site.key" in {f.check: f for f in examine(field.home)}["data"].found


def test_a_policy_that_cannot_be_read_is_an_ailment_with_its_field(field):
    (field.home.root / "egress.yaml").write_text("allow: [{kind: everything}]")
    assert "allow.0.kind" in {f.check: f for f in examine(field.home)}["egress"].found


def test_on_a_full_disk_nothing_leaves_and_afterwards_all_of_it_does(field):
    left = []
    tap = field.broker.client("hub-1")
    tap.connect()
    tap.subscribe("ss/v1/site/+/+/egress/+", left.append)
    index = field.package(1)
    components = field.start(upkeep_s=0.01, ops_every_s=0.01)
    log = components.outbox.log
    field.until(lambda: left)
    (pages,) = log._connection.execute("PRAGMA page_count").fetchone()
    log._connection.execute(f"PRAGMA max_page_count = {pages}")
    before = _settled(field, components, log, left)
    field.hub.want(ME, index, 1)
    field.settled()
    assert len(left) == before
    log._connection.execute("PRAGMA max_page_count = 1000000")
    field.until(lambda: len(left) > before)
    assert log.verify().waiting == 0
    assert len(left) == log.verify().left


def _settled(field, components, log, left):
    """Use up the last free bytes of the file's pages; returns how many messages had left by then."""
    seen = -1
    while seen != (seen := log.head()[0]):
        for _ in range(30):
            components.agent.turn()
    return len(left)

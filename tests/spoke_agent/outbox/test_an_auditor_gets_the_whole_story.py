from datetime import timedelta
from pathlib import Path

from spoke_agent.outbox.audit_pack import EvidencePack, make_pack, write_pack
from sync.core.types import SpokeId
from tests.spoke_agent.outbox.test_the_outbox_opens_only_by_the_rules import ABOUT, OPS, START, VERDICT, FakeTransport, outbox

ME = SpokeId("dubai")


def told(home: Path, out: Path) -> tuple[EvidencePack, str]:
    box = outbox(home)
    pack = make_pack(box.log, ME, "ae-pdpl", START)
    write_pack(pack, out)
    box.close()
    return EvidencePack.parse((out / "evidence.json").read_bytes()), (out / "evidence.md").read_text()


def test_the_pack_names_policies_counts_refusals_and_every_record(tmp_path: Path):
    box = outbox(tmp_path / "home", FakeTransport())
    assert box.offer(VERDICT, ABOUT)
    (tmp_path / "home" / "egress.yaml").write_text("allow: [{kind: ops}]")
    assert box.offer(OPS)
    assert not box.offer(VERDICT, ABOUT)
    head = box.log.last_record()[1]
    box.close()
    pack, page = told(tmp_path / "home", tmp_path / "out")
    assert pack.chain.whole
    assert (pack.chain.left, pack.chain.refused, pack.chain.last_record) == (2, 1, head)
    assert [len(p.policy.allow) for p in pack.policies] == [2, 1]  # the default, then the site's own
    assert {k.asked: (k.left, k.refused) for k in pack.kinds} == {"ops": (1, 0), "drift_verdict": (1, 1)}
    assert [(d.rule.value, d.times) for d in pack.denials] == [("not_in_site_policy", 1)]
    assert [r.policy for r in pack.records] == [p.digest for p in pack.policies]
    assert "policy does not list this kind" in page
    assert str(head) in page


def test_a_broken_chain_is_in_the_pack_and_does_not_stop_it(tmp_path: Path):
    box = outbox(tmp_path / "home", FakeTransport())
    box.offer(OPS)
    box.offer(VERDICT, ABOUT)
    box.log._connection.execute("DELETE FROM log WHERE sequence = 1")
    box.close()
    pack, page = told(tmp_path / "home", tmp_path / "out")
    assert not pack.chain.whole
    assert "removed" in str(pack.chain.broken)
    assert "BROKEN" in page


def test_a_period_leaves_out_what_came_before_it_but_follows_the_whole_chain(tmp_path: Path):
    box = outbox(tmp_path / "home", FakeTransport())
    box.offer(OPS)
    pack = make_pack(box.log, ME, "ae-pdpl", START, since=next(box.log.entries()).entry.time + timedelta(days=1))
    box.close()
    assert pack.records == ()
    assert pack.chain.entries == 1

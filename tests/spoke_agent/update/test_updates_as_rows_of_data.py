"""Start, circumstances, and what must come of it: the chain of reports, the last reason, and what is served."""

from dataclasses import dataclass, field, replace

import pytest

from spoke_agent.server_api.messages import ShadowStats
from sync.core.types import Reason, State
from sync.protocol.messages import ProbationTerms, ShadowTerms
from tests.spoke_agent.fakes import Behaviour, Rig

GOOD = ["admitted", "staging", "verified", "shadow", "armed", "probation", "committed"]
BACK = [*GOOD[:6], "rolled_back"]


TWICE = ["admitted", *["staging", "verified", "shadow"] * 2]
"""The first variant is off here, and the second one is tried."""


def upto(state, end):
    return [*GOOD[: GOOD.index(state) + 1], end]


@dataclass(frozen=True)
class Row:
    name: str
    chain: list[str]
    reason: Reason
    serves: int
    behaviour: Behaviour = field(default_factory=Behaviour)
    shadow: ShadowTerms = field(default_factory=ShadowTerms)
    probation: ProbationTerms = field(default_factory=lambda: ProbationTerms(soak_s=10))
    refused: Reason | None = None
    bad_contents: bool = False
    capacity: dict = field(default_factory=dict)
    closed: int = 0
    settings: dict = field(default_factory=dict)


ROWS = [
    Row("all is well", GOOD, Reason.NONE, 2),
    Row("the road is closed for a while", GOOD, Reason.NONE, 2, closed=3),
    Row("the road stays closed", upto("admitted", "failed"), Reason.TRANSFER_FAILED, 1, closed=1000),
    Row("not released", upto("admitted", "rejected"), Reason.NOT_RELEASED, 1, refused=Reason.NOT_RELEASED),
    Row("denied", upto("admitted", "rejected"), Reason.DENIED, 1, refused=Reason.DENIED),
    Row("no space", upto("admitted", "rejected"), Reason.NO_SPACE, 1, capacity={"disk_free": 1000}),
    Row("no engine", upto("admitted", "rejected"), Reason.ENGINE_MISSING, 1, capacity={"engines": frozenset()}),
    Row("wrong signer", upto("verified", "failed"), Reason.PUBLISHER_UNTRUSTED, 1, bad_contents=True),
    Row("every variant is off here", [*TWICE, "failed"], Reason.GOLDEN_MISMATCH, 1, Behaviour(golden=False)),
    Row("no variant loads", [*TWICE, "failed"], Reason.LOAD_FAILED, 1, Behaviour(load=Reason.LOAD_FAILED)),
    *(
        Row(f"the next variant serves after {off}", [*TWICE, *GOOD[4:]], Reason.NONE, 2, Behaviour(off={"onnx-int8": off}))
        for off in (Reason.GOLDEN_MISMATCH, Reason.LOAD_FAILED, Reason.ENGINE_MISSING)
    ),
    Row("no memory to load it", upto("shadow", "failed"), Reason.NO_MEMORY, 1, Behaviour(load=Reason.NO_MEMORY)),
    Row("too slow here", upto("shadow", "failed"), Reason.LATENCY_EXCEEDED, 1, Behaviour(latency_ms=3.5)),
    Row(
        "disagrees with the champion",
        upto("shadow", "failed"),
        Reason.SHADOW_DISAGREEMENT,
        1,
        Behaviour(shadow=ShadowStats(rows=200, disagreements=60)),
        shadow=ShadowTerms(min_rows=200, max_disagreement=0.1),
    ),
    Row(
        "agrees well enough",
        GOOD,
        Reason.NONE,
        2,
        Behaviour(shadow=ShadowStats(rows=200, disagreements=10)),
        shadow=ShadowTerms(min_rows=200, max_disagreement=0.1),
    ),
    Row(
        "a quiet shop does not hold a rollout",
        GOOD,
        Reason.NONE,
        2,
        Behaviour(shadow=ShadowStats(rows=3)),
        shadow=ShadowTerms(min_rows=200, max_wait_s=30),
    ),
    Row("worse than it claims", BACK, Reason.ACCURACY_BELOW_CLAIM, 1, Behaviour(labels=(60, 30))),
    Row("as good as it claims", GOOD, Reason.NONE, 2, Behaviour(labels=(60, 58))),
    Row("errors", BACK, Reason.ERROR_RATE, 1, Behaviour(requests=100, errors=40)),
    Row(
        "labels are awaited, but not for ever",
        GOOD,
        Reason.NONE,
        2,
        probation=ProbationTerms(soak_s=5, min_labelled=50, max_wait_s=60),
    ),
]


def play(row, folder):
    rig = Rig(folder, **row.settings)
    rig.install(1)
    before = rig.store.digests()
    rig.server.behaviour[2] = row.behaviour
    if row.refused:
        rig.trust.refused[2] = row.refused
    if row.bad_contents:
        rig.trust.bad_contents.add(2)
    rig.capacity = replace(rig.capacity, **row.capacity)
    rig.hub.closed = row.closed
    rig.want(2, shadow=row.shadow, probation=row.probation)
    rig.settle()
    return rig, before


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_update(row, tmp_path):
    rig, _ = play(row, tmp_path)
    assert rig.chain() == row.chain
    assert rig.last().reason is row.reason
    assert rig.champion() == row.serves
    assert rig.last().serving[0].version == row.serves
    assert [r.sequence for r in rig.sent] == sorted({r.sequence for r in rig.sent})


@pytest.mark.parametrize("row", [r for r in ROWS if r.serves == 1], ids=lambda row: row.name)
def test_a_failed_update_leaves_nothing_on_disk_and_is_not_tried_again_by_itself(row, tmp_path):
    rig, before = play(row, tmp_path)
    sent = len(rig.sent)
    rig.restart()
    rig.run(30)
    assert len(rig.sent) == sent
    if row.reason is not Reason.TRANSFER_FAILED:
        assert rig.store.digests() - before == set()


def test_the_first_model_of_a_spoke_that_fails_leaves_it_with_none(tmp_path):
    rig = Rig(tmp_path)
    rig.server.behaviour[1] = Behaviour(labels=(100, 20))
    rig.want(1)
    rig.settle()
    assert rig.chain() == BACK
    assert rig.champion() is None


def test_a_rollback_says_how_long_it_took_and_what_was_seen(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    rig.server.behaviour[1] = Behaviour(labels=(100, 97))
    rig.server.behaviour[2] = Behaviour(labels=(60, 30), requests=80)
    rig.want(2)
    rig.settle()
    seen = rig.last().evidence
    assert seen.rollback_ms is not None
    assert (seen.labelled, seen.labelled_correct) == (60, 30)
    assert (seen.champion_labelled, seen.champion_labelled_correct) == (100, 97)
    assert seen.claimed_accuracy == 0.98
    assert seen.bytes_received >= 300_000


def test_a_version_is_not_blamed_for_what_the_site_does_to_every_version(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    rig.server.behaviour[1] = Behaviour(labels=(200, 96))
    rig.server.behaviour[2] = Behaviour(labels=(60, 30))
    rig.want(2)
    rig.settle()
    assert rig.champion() == 2


def test_last_good_stays_pinned_and_the_version_before_it_goes(tmp_path):
    rig = Rig(tmp_path)
    for version in (1, 2, 3):
        rig.install(version)
    model_slots = rig.model_slots()
    assert (model_slots.champion.version, model_slots.last_good.version) == (3, 2)
    assert rig.hub.versions[1] not in rig.store.digests()
    assert {rig.hub.versions[2], rig.hub.versions[3]} <= rig.store.digests()


def test_a_new_rollout_of_a_version_that_failed_is_tried_again(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    rig.server.behaviour[2] = Behaviour(golden=False)
    rig.want(2, rollout="first")
    rig.settle()
    rig.server.behaviour[2] = Behaviour()
    rig.want(2, rollout="second")
    rig.settle()
    assert rig.champion() == 2


def test_a_state_that_takes_too_long_ends(tmp_path):
    rig = Rig(tmp_path, switch_hours="03:00-04:00", arm_timeout_s=100)
    rig.want(1)
    rig.run(90, step=10)
    assert rig.last().state is State.ARMED
    rig.run(60, step=10)
    assert (rig.last().state, rig.last().reason) == (State.FAILED, Reason.TIMEOUT)


def test_the_switch_waits_for_its_hours(tmp_path):
    rig = Rig(tmp_path, switch_hours="03:00-04:00")
    rig.want(1)
    rig.run(3600, step=600)
    assert rig.last().state is State.ARMED
    rig.run(3 * 3600, step=600)
    assert rig.last().state is State.COMMITTED

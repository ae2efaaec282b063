"""A challenger that this site has set, while the hub rolls out other versions."""

import pytest

from spoke_agent.daemon.challenger import ChallengerUnknown, chosen
from spoke_agent.site.slots import edit_slots
from sync.protocol.messages import ProbationTerms
from tests.spoke_agent.fakes import Rig


@pytest.fixture
def rig(tmp_path):
    """Version 2 is committed, version 1 is last-good and challenges it."""
    rig = Rig(tmp_path)
    rig.install(1)
    rig.install(2)
    edit_slots(rig.slots, "digits", lambda m: chosen("digits", m, 1, percent=10, sticky=False))
    return rig


def index_of(rig):
    return rig.model_slots().challenger.index


def test_it_rests_in_probation_and_is_over_with_the_next_champion(rig):
    rig.want(3, probation=ProbationTerms(soak_s=50))
    rig.run(10)
    assert rig.champion() == 3
    assert rig.model_slots().challenger is not None
    assert rig.model_slots().challenging is None
    rig.settle()
    assert rig.champion() == 3
    assert rig.model_slots().challenger is None


def test_it_is_back_when_the_next_champion_is_rolled_back(rig):
    index = index_of(rig)
    rig.want(3, probation=ProbationTerms(soak_s=1000))
    rig.run(10)
    rig.want(2)
    rig.settle()
    assert rig.champion() == 2
    assert rig.model_slots().challenging.percent == 10
    assert index in rig.store.digests()


def test_its_package_stays_in_the_store_though_last_good_has_moved_on(rig):
    index = index_of(rig)
    rig.want(3, probation=ProbationTerms(soak_s=1000))
    rig.run(10)
    assert rig.model_slots().last_good.version == 2
    rig.runner.collect()
    assert index in rig.store.digests()
    rig.run(2000)
    assert rig.champion() == 3
    assert index not in rig.store.digests()


def test_a_champion_alone_has_nothing_to_challenge_it(tmp_path):
    rig = Rig(tmp_path)
    rig.install(1)
    with pytest.raises(ChallengerUnknown, match="there are: none"):
        chosen("digits", rig.model_slots(), 2, percent=5, sticky=False)

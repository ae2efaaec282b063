"""A flat battery says 1970, a bad time server 2036: neither may stop a spoke for good, nor open it to an attacker."""

from datetime import UTC, datetime, timedelta

import pytest

from model_formats.core.types import ModelRef
from sync.core.types import Reason
from sync.trust.errors import MetadataRefused, TrustRefused
from sync.trust.freshness import answer_time
from tests.samples.trust_world import CLINIC, DAY, World

NONCE = "ab" * 16
PAST, FUTURE = datetime(1970, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)


def at(world: World, wall: datetime):
    """The spoke's store under a wrong clock; the hub's clock stays right."""
    from sync.core.clock import ManualClock
    from sync.trust.client import TrustStore

    return TrustStore(world.folder / "spoke", ManualClock(wall), world.repo.anchor)


def test_a_clock_that_is_behind_takes_the_time_of_what_was_signed(world: World) -> None:
    world.release("digits@1")
    spoke = at(world, PAST)
    assert spoke.update(world.fetch).version(ModelRef("digits", 1)) is not None
    assert spoke.now() == world.clock.now()


def test_a_clock_that_fell_back_does_not_make_old_metadata_young_again(world: World) -> None:
    old = dict(world.files)
    world.clock.advance(30 * DAY)
    world.repo.refresh_online()
    world.publish()
    world.spoke().update(world.fetch)
    spoke = at(world, PAST)
    assert spoke.now() == world.clock.now()
    world.files = old
    with pytest.raises(MetadataRefused) as e:
        spoke.update(world.fetch)
    assert e.value.reason is Reason.METADATA_ROLLBACK


def test_a_clock_that_runs_ahead_takes_nothing_but_keeps_what_it_had(world: World) -> None:
    world.release("digits@1")
    world.spoke().update(world.fetch)
    spoke = at(world, FUTURE)
    world.clock.advance(DAY)
    world.release("digits@2")
    with pytest.raises(MetadataRefused) as e:
        spoke.update(world.fetch)
    assert e.value.reason is Reason.METADATA_EXPIRED
    assert spoke.released().version(ModelRef("digits", 1)) is not None


def test_a_clock_that_ran_ahead_and_was_set_right_leaves_no_trace(world: World) -> None:
    world.release("digits@1")
    world.spoke().update(world.fetch)
    with pytest.raises(MetadataRefused):
        at(world, FUTURE).update(world.fetch)
    world.release("digits@2")
    assert world.spoke().update(world.fetch).version(ModelRef("digits", 2)) is not None


def test_the_hubs_answer_to_our_nonce_sets_a_clock_that_runs_ahead_right(world: World) -> None:
    world.release("digits@1")
    world.spoke().update(world.fetch)
    world.clock.advance(DAY)
    world.release("digits@2")
    spoke = at(world, FUTURE)
    wrong_by = spoke.correct_clock(answer_time(CLINIC, NONCE, world.clock.now(), world.repo.director), CLINIC, NONCE)
    assert timedelta(seconds=wrong_by) == world.clock.now() - FUTURE
    assert spoke.update(world.fetch).version(ModelRef("digits", 2)) is not None
    assert at(world, FUTURE + timedelta(hours=1)).now() == world.clock.now() + timedelta(hours=1)


@pytest.mark.parametrize("fault", ["another nonce", "another spoke", "another key", "before what we know"])
def test_an_answer_that_is_not_ours_moves_nothing(world: World, fault: str) -> None:
    world.release("digits@1")
    world.spoke().update(world.fetch)
    spoke = at(world, FUTURE)
    signer = world.repo.director if fault != "another key" else world.device
    who = CLINIC if fault != "another spoke" else type(CLINIC)("dubai")
    nonce = NONCE if fault != "another nonce" else "cd" * 16
    time = world.clock.now() - timedelta(days=400 if fault == "before what we know" else 0)
    with pytest.raises(TrustRefused):
        spoke.correct_clock(answer_time(who, nonce, time, signer), CLINIC, NONCE)
    assert spoke.now() == FUTURE


def test_a_stolen_director_key_cannot_end_all_time(world: World) -> None:
    world.release("digits@1")
    spoke = world.spoke()
    released = spoke.update(world.fetch)
    spoke.witness(FUTURE)
    assert spoke.now() <= released.expires
    world.repo.roll("timestamp")
    world.publish()
    assert not spoke.update(world.fetch).expired


def test_an_expired_family_releases_nothing_more_though_its_versions_are_still_known(world: World) -> None:
    world.release("digits@1", zones=("me",))
    world.clock.advance(300 * DAY)
    world.release("letters@1", zones=("me",))
    world.repo.deny()
    world.clock.advance(70 * DAY)
    world.repo.refresh_online()
    world.publish()
    released = world.spoke().update(world.fetch)
    assert not released.expired
    assert released.version(ModelRef("digits", 1)) is not None
    with pytest.raises(MetadataRefused) as e:
        released.target("models/digits/1/index.json")
    assert e.value.reason is Reason.METADATA_EXPIRED
    assert released.target("models/letters/1/index.json").length == len("letters@1")

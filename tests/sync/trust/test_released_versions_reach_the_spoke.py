from datetime import timedelta

import pytest
from tuf.api.metadata import Targets

from model_formats.core.types import ModelRef, digest_of
from sync.core.types import Reason
from sync.trust.errors import MetadataIncomplete, MetadataRefused, ReleaseRefused

DAY = 86400.0


def test_a_release_is_seen_with_its_terms(world) -> None:
    world.release("digits@1", b"index one", zones=("me", "eu"))
    released = world.spoke().update(world.fetch)
    target = released.target("models/digits/1/index.json")
    assert (target.digest, target.length) == (digest_of(b"index one"), 9)
    assert target.custom["zones"] == ["me", "eu"]
    assert released.director_keys[0].keyid == world.repo.director.public_key.keyid
    assert not released.expired
    assert not released.stale


def test_what_was_not_released_is_refused(world) -> None:
    world.release("digits@1")
    released = world.spoke().update(world.fetch)
    with pytest.raises(ReleaseRefused) as e:
        released.target("models/digits/2/index.json")
    assert e.value.reason is Reason.NOT_RELEASED


def test_a_family_role_cannot_release_for_another_family(world) -> None:
    world.release("digits@1")
    world.release("letters@1")
    family = world.repo._next("model-letters", Targets)
    family.targets["models/digits/9/index.json"] = family.targets["models/letters/1/index.json"]
    world.repo._propose("model-letters", family)
    world.publish()
    released = world.spoke().update(world.fetch)
    assert released.version(ModelRef("letters", 1)) is not None
    assert released.version(ModelRef("digits", 9)) is None


def test_the_trusted_set_survives_a_restart_without_any_network(world) -> None:
    world.release("digits@1")
    before = world.spoke().update(world.fetch)
    after = world.spoke().released()
    assert after.targets == before.targets
    assert after.versions == before.versions


def test_before_the_first_metadata_there_is_nothing_to_believe(world) -> None:
    with pytest.raises(MetadataIncomplete):
        world.spoke().released()


@pytest.mark.parametrize(
    "name", ["timestamp.json", "snapshot.json", "targets.json", "model-digits.json", "keys.director.json", "deny.json"]
)
def test_a_file_that_has_not_arrived_changes_nothing_and_may_come_later(world, name: str) -> None:
    spoke = world.spoke()
    spoke.update(world.fetch)
    world.release("digits@1")
    world.repo.deny(digest_of(b"bad"))
    world.repo.roll("director")
    world.publish()
    whole, before = dict(world.files), spoke.released()
    del world.files[name]
    if name == "timestamp.json":
        assert spoke.update(world.fetch).versions == before.versions
    else:
        with pytest.raises(MetadataIncomplete):
            spoke.update(world.fetch)
    assert spoke.released() == before
    world.files = whole
    assert spoke.update(world.fetch).version(ModelRef("digits", 1)) is not None


def test_a_spoke_that_was_off_for_two_years_catches_up_by_itself(world) -> None:
    world.release("digits@1")
    spoke = world.spoke()
    spoke.update(world.fetch)
    for year in range(4):
        world.clock.advance(180 * DAY)
        world.repo.roll("targets")
        world.repo.roll("timestamp")
        world.release(f"digits@{year + 2}")
    assert set(spoke.released().expired) >= {"timestamp", "snapshot"}
    released = spoke.update(world.fetch)
    assert released.version(ModelRef("digits", 5)) is not None
    assert not released.expired


def test_an_expired_set_still_tells_what_was_true_and_is_reported_stale(world) -> None:
    world.release("digits@1")
    spoke = world.spoke()
    spoke.update(world.fetch)
    world.clock.advance(2 * DAY)
    assert spoke.released().stale
    assert not spoke.released().expired
    world.clock.advance(20 * DAY)
    released = spoke.released()
    assert released.expired == ("timestamp",)
    assert released.version(ModelRef("digits", 1)) is not None
    assert released.staleness == timedelta(days=22)
    with pytest.raises(MetadataRefused) as e:
        spoke.update(world.fetch)
    assert e.value.reason is Reason.METADATA_EXPIRED


def test_a_refresh_with_nothing_new_costs_only_the_timestamp(world) -> None:
    world.release("digits@1")
    before = dict(world.files)
    world.clock.advance(13 * 3600)
    assert world.repo.refresh_online()
    world.publish()
    changed = {name for name, data in world.files.items() if before.get(name) != data}
    assert changed == {"timestamp.json"}
    assert len(world.files["timestamp.json"]) <= 1000


def test_a_young_timestamp_is_not_signed_again(world) -> None:
    assert not world.repo.refresh_online()


def test_another_anchor_means_another_trusted_set(world, tmp_path) -> None:
    world.release("digits@1")
    world.spoke().update(world.fetch)
    other = type(world)(tmp_path / "other", world.clock)
    stranger = type(world).spoke(other, "spoke")
    with pytest.raises(MetadataRefused):
        stranger.update(world.fetch)

"""Backup, life goes on, the machine is lost, restore: what the restored hub signs is taken by a spoke that saw all of it."""

import stat
import tarfile
from datetime import timedelta

import pytest

from hub.app.backup import LIFT, BackupInvalid, back_up, restore
from hub.config.settings import HubSettings
from hub.context import HubContext, HubMissing
from hub.services.directives import refresh_directive
from hub.services.enrolments import invite_spoke
from hub.store.audit import read_audit
from hub.store.spokes import find_spoke
from model_formats.core.types import ModelRef
from sync.core.types import Reason, SpokeId
from sync.trust.client import TrustStore
from sync.trust.errors import MetadataRefused
from sync.trust.verifier import verify_directive

ME, WEEK = SpokeId("dubai"), 7 * 86400


class Follower:
    """The trust half of a spoke."""

    def __init__(self, house):
        self.store = TrustStore(house.folder / "trust", house.clock, house.hub.repository.anchor)
        self.generation = 0

    def hears(self, hub):
        with hub.trust() as repository:
            released = self.store.update(repository.files().get)
        with hub.database.begin() as db:
            sealed = refresh_directive(db, hub.repository.director, ME, now=hub.now, life_s=WEEK)
        wish = verify_directive(sealed.envelope, released, ME, "me", self.generation, self.store.now())
        self.generation = wish.generation
        return released


@pytest.fixture
def lost(house):
    """A backup, and a spoke that has seen days of what came after it."""
    house.enrol("dubai")
    house.release(1)
    spoke = Follower(house)
    spoke.hears(house.hub)
    invite_spoke(house.hub, SpokeId("paris"), "eu", "gdpr", "ann")
    back_up(house.hub, house.folder / "hub.tar")
    for _ in range(5):
        house.clock.advance(86400)
        house.hub.repository.refresh_online(max_age=timedelta(0))
        with house.hub.database.begin() as db:
            refresh_directive(db, house.hub.repository.director, ME, now=house.hub.now, life_s=86400)
    spoke.hears(house.hub)
    return spoke


def restored(house):
    done = restore(house.folder / "again", house.folder / "hub.tar", house.clock)
    return done, HubContext.open(house.folder / "again", HubSettings(), house.clock)


def test_a_spoke_that_saw_more_follows_the_restored_hub(house, lost):
    seen = lost.generation
    done, hub = restored(house)
    released = lost.hears(hub)
    assert released.version(ModelRef("digits", 1)) is not None
    assert lost.generation > seen + LIFT / 2
    assert (done.spokes, done.codes_void) == (1, 1)
    with hub.database.read() as db:
        assert find_spoke(db, ME).revoked is None
        assert [line.action for line, _ in read_audit(db)].count("hub.restore") == 1
    hub.close()


def test_without_the_lift_it_would_be_refused_as_a_rollback(house, lost):
    with tarfile.open(house.folder / "hub.tar") as tar:
        tar.extractall(house.folder / "raw", filter="data")
    hub = HubContext.open(house.folder / "raw", HubSettings(), house.clock)
    with pytest.raises(MetadataRefused) as e:
        lost.hears(hub)
    assert e.value.reason is Reason.METADATA_ROLLBACK
    hub.close()


def test_a_release_after_the_backup_has_to_be_signed_again(house, lost):
    house.release(2)
    lost.hears(house.hub)
    _, hub = restored(house)
    with pytest.raises(MetadataRefused) as e:
        lost.hears(hub)
    assert e.value.reason is Reason.METADATA_ROLLBACK
    hub.close()


def test_private_files_stay_private_and_offline_keys_stay_out(house, lost):
    assert stat.S_IMODE((house.folder / "hub.tar").stat().st_mode) == 0o600
    restored(house)[1].close()
    home = house.folder / "again"
    assert not (home / "keys").exists()
    private = [*home.rglob("*.pem"), *home.rglob("*.key"), home / "operator.token"]
    assert len(private) > 3
    assert {stat.S_IMODE(p.stat().st_mode) & 0o077 for p in private if "crl" not in p.name} == {0}


def test_only_an_empty_folder_and_a_real_backup_will_do(house, tmp_path):
    back_up(house.hub, tmp_path / "hub.tar")
    with pytest.raises(HubMissing, match="not empty"):
        restore(house.hub.home.root, tmp_path / "hub.tar")
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    with pytest.raises(BackupInvalid):
        restore(tmp_path / "new", tmp_path / "noise")

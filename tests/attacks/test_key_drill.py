"""The drill of docs/security-drill.md, command by command: any one role is lost or stolen, and the fleet recovers by itself."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from hub.cli import group
from model_formats.core.console import run
from model_formats.core.types import ModelRef, digest_of
from sync.core.clock import SystemClock
from sync.trust.client import TrustStore
from sync.trust.errors import MetadataRefused, TrustRefused
from sync.trust.keys import load_signer
from sync.trust.metadata import Repository, add_signature
from sync.trust.repository_files import read_metadata
from sync.trust.verifier import verify_directive
from tests.samples.trust_world import CLINIC, World


class Drill(World):
    """A hub's home with its keys carried away: root to three safes, targets and families to the approvers' machine."""

    def __post_init__(self) -> None:
        self.clock = SystemClock()
        self.home, self.safe = self.folder / "hub", self.folder / "safe"
        self.home.mkdir()
        super().__post_init__()
        (self.folder / "repo").rename(self.home / "tuf")
        (self.home / "tuf" / "keys").rename(self.safe)
        self.repo = Repository(self.home / "tuf", keys=self.safe)
        self.release("digits@1", zones=("me",))
        self.spokes = [TrustStore(self.folder / "spoke", self.clock, self.repo.anchor)]
        self.hears()

    def hears(self):
        """The spoke hears what the hub publishes now."""
        self.publish()
        return self.spokes[0].update(self.fetch)


@pytest.fixture
def drill(tmp_path: Path) -> Drill:
    return Drill(tmp_path)


@pytest.fixture
def hub(drill: Drill, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Run one `hub` command."""

    def call(*argv: object):
        status = run(group, ["--home", str(drill.home), "--json", *map(str, argv)])
        told = capsys.readouterr()
        assert status == 0, told.err
        return json.loads(told.out)

    return call


def test_one_root_key_is_lost(drill: Drill, hub, tmp_path: Path) -> None:
    gone = hub("root", "status", "--keys", drill.safe)["roles"][0]["keys"][2]["id"]
    hub("root", "key", tmp_path / "root-4.pem")
    told = hub("root", "rotate", "root", "--new", tmp_path / "root-4.pem.pub", "--remove", gone[:8], "--out", tmp_path / "carry")
    assert told["pending"][0]["signed"] == 0
    for n in (1, 2):
        seen = hub("root", "sign", tmp_path / "carry" / "root.json", "--key", drill.safe / f"root-{n}.pem")
        assert len(seen["roles"]["root"]["keys"]) == 3
    assert hub("root", "accept", tmp_path / "carry" / "root.json")["complete"]
    released = drill.hears()
    assert released.versions["root"] == 2
    assert released.version(ModelRef("digits", 1)) is not None
    assert gone not in drill.repo.root.roles["root"].keyids


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["root", "--remove", "zz"], "'zz' begins 0 of the root keys"),
        (["root", "--remove", ""], "'' begins 0 of the root keys"),
        (["targets", "--remove", "ab"], "--remove is for root alone"),
        (["root"], "give --new, --remove or --threshold"),
    ],
)
def test_a_key_that_is_not_found_is_not_kept_in_silence(drill: Drill, capsys, words: list[str], told: str) -> None:
    before = drill.repo.root.version
    assert run(group, ["--home", str(drill.home), "root", "rotate", *words, "--keys", str(drill.safe), "--json"]) == 2
    assert told in json.loads(capsys.readouterr().err)["message"]
    assert drill.repo.root.version == before


def test_looking_signs_nothing(drill: Drill, hub, tmp_path: Path) -> None:
    hub("root", "rotate", "timestamp", "--out", tmp_path / "carry")
    before = (tmp_path / "carry" / "root.json").read_bytes()
    hub("root", "sign", tmp_path / "carry" / "root.json", "--key", drill.safe / "root-1.pem", "--dry-run")
    assert (tmp_path / "carry" / "root.json").read_bytes() == before


def test_the_whole_hub_is_stolen(drill: Drill, hub, tmp_path: Path) -> None:
    """The thief has snapshot, timestamp and director, and has already counted far ahead and sent a directive."""
    shutil.copytree(drill.home / "tuf", tmp_path / "stolen")
    thief = Repository(tmp_path / "stolen", keys=tmp_path / "none")
    bad = drill.directive(generation=9)
    far = read_metadata(thief.files()["timestamp.json"])
    far.signed.version = 2**31
    drill.files["timestamp.json"] = add_signature(far.to_bytes(), *thief._files.signers(thief.root.roles["timestamp"].keyids))
    drill.spokes[0].update(drill.fetch)

    hub("root", "rotate", "snapshot", "timestamp", "director", "--keys", drill.safe)

    released = drill.hears()
    assert released.versions["timestamp"] < 2**31
    with pytest.raises(TrustRefused):
        verify_directive(bad, released, CLINIC, "me", 0, released.now)
    assert verify_directive(drill.directive(), released, CLINIC, "me", 0, released.now).generation == 1
    again = read_metadata(drill.files["timestamp.json"])
    again.signed.version += 1
    drill.files["timestamp.json"] = add_signature(again.to_bytes(), *thief._files.signers(thief.root.roles["timestamp"].keyids))
    with pytest.raises(MetadataRefused):
        TrustStore(tmp_path / "fresh", drill.clock, drill.repo.anchor).update(
            lambda name: thief.files().get(name) if name == "timestamp.json" else drill.files.get(name)
        )


@pytest.mark.parametrize("role", ["targets", "model-digits"])
def test_an_approvers_key_is_stolen(drill: Drill, hub, tmp_path: Path, role: str) -> None:
    shutil.copytree(drill.safe, tmp_path / "stolen-keys")
    told = hub("root", "rotate", role, "--keys", drill.safe)
    assert told["pending"] == []
    released = drill.hears()
    assert released.version(ModelRef("digits", 1)) is not None
    assert not released.refused
    drill.release("digits@2", zones=("me",))
    assert drill.hears().version(ModelRef("digits", 2)) is not None
    old = load_signer(tmp_path / "stolen-keys" / f"{role}.pem")
    forged = read_metadata(drill.files[f"{role}.json"])
    forged.signatures.clear()
    forged.signed.version += 1
    with pytest.raises(MetadataRefused):
        drill.repo.accept(role, add_signature(forged.to_bytes(), old))


def test_the_hubs_machine_burns_and_nothing_was_stolen(drill: Drill, hub, tmp_path: Path) -> None:
    """Metadata from a backup of yesterday, fresh online keys: spokes that heard today's must not be stuck."""
    shutil.copytree(drill.home / "tuf", tmp_path / "backup")
    for _ in range(3):
        drill.repo.refresh_online(max_age=timedelta(0))
    drill.hears()
    shutil.rmtree(drill.home / "tuf")
    shutil.copytree(tmp_path / "backup", drill.home / "tuf")
    shutil.rmtree(drill.home / "tuf" / "online")
    hub("root", "rotate", "snapshot", "timestamp", "director", "--keys", drill.safe)
    assert drill.hears().version(ModelRef("digits", 1)) is not None


@pytest.mark.parametrize("role", ["root", "targets", "model-digits"])
def test_a_role_is_renewed_before_it_expires(drill: Drill, hub, tmp_path: Path, role: str) -> None:
    before = drill.hears().versions[role]
    assert not hub("root", "renew", role, "--out", tmp_path / "carry")["complete"]
    holders = ["root-1", "root-3"] if role == "root" else [role]
    keys = [part for name in holders for part in ("--key", drill.safe / f"{name}.pem")]
    hub("root", "sign", tmp_path / "carry" / f"{role}.json", *keys)
    assert hub("root", "accept", tmp_path / "carry" / f"{role}.json")["complete"]
    assert drill.hears().versions[role] == before + 1


def test_two_denials_that_wait_do_not_undo_each_other(drill: Drill, hub, tmp_path: Path) -> None:
    running = Repository(drill.home / "tuf", keys=tmp_path / "none")
    running.deny(digest_of(b"one"))
    proposal = running.deny(digest_of(b"two"))
    assert running.accept("targets", add_signature(proposal.data, load_signer(drill.safe / "targets.pem"))).complete
    assert drill.hears().denied == {digest_of(b"one"), digest_of(b"two")}


def test_every_command_of_the_page_exists(drill: Drill, hub) -> None:
    page = (Path(__file__).parents[2] / "docs" / "security-drill.md").read_text()
    known = set(group.get_command(None, "root").commands)  # type: ignore[arg-type,union-attr]
    named = {line.split()[2] for line in page.splitlines() if line.startswith("hub root ")}
    assert named == known

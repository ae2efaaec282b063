"""The attacks of the TUF specification (1.5.2) on a spoke, each with metadata crafted for it.

The attacker owns the way between hub and spoke, and whatever keys a test says were stolen. After every attack the refusal carries
its reason, and what the spoke trusted before it still trusts (so last-good is still served).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Snapshot, Timestamp

from model_formats.core.types import ModelRef, digest_of
from sync.core.types import Reason
from sync.trust.errors import MetadataRefused, ReleaseRefused
from tests.attacks.forging import evil, forged, hang_together, stolen, up
from tests.samples.trust_world import DAY, World


@pytest.fixture
def spoke(world: World):
    """A spoke that has heard of digits@1."""
    world.release("digits@1")
    store = world.spoke()
    store.update(world.fetch)
    return store


@contextmanager
def refused(spoke, reason: Reason) -> Iterator[None]:
    before = spoke.released()
    with pytest.raises((MetadataRefused, ReleaseRefused)) as e:
        yield
    assert e.value.reason is reason, e.value
    after = spoke.released()
    assert after.targets == before.targets
    assert after.version(ModelRef("digits", 1)) is not None


# ---- arbitrary package, thresholds, keys --------------------------------------------------------------------------------------


def test_arbitrary_package_by_an_attacker_without_keys(world: World, spoke) -> None:
    world.files["model-digits.json"] = forged(world.files["model-digits.json"], evil)
    world.files["timestamp.json"] = forged(world.files["timestamp.json"], up)
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


def test_arbitrary_package_by_whoever_stole_the_whole_hub(world: World, spoke) -> None:
    """Snapshot, timestamp and director keys release nothing: they only choose among what approvers signed."""
    world.files["model-digits.json"] = forged(world.files["model-digits.json"], evil, stolen(world, "snapshot"))
    hang_together(world, "snapshot", "timestamp")
    released = spoke.update(world.fetch)
    assert released.refused["model-digits"].reason is Reason.METADATA_INVALID
    with pytest.raises(MetadataRefused):
        released.target("models/digits/2/index.json")


def test_a_key_below_the_threshold(world: World, spoke) -> None:
    approvers = [CryptoSigner.generate_ed25519() for _ in range(3)]
    world.repo.add_model_family("letters", keys=[a.public_key for a in approvers], threshold=2)
    first = world.repo.pending()[0]
    assert (first.role, first.threshold, first.complete) == ("model-letters", 2, False)
    data = forged(first.data, lambda s: None, approvers[0])
    assert not world.repo.accept("model-letters", data).complete
    both = forged(first.data, lambda s: None, *approvers[:2])
    assert world.repo.accept("model-letters", both).complete
    world.publish()
    world.files["model-letters.json"] = forged(world.files["model-letters.json"], up, approvers[2])
    hang_together(world, "snapshot", "timestamp")
    assert spoke.update(world.fetch).refused["model-letters"].reason is Reason.METADATA_INVALID


def test_one_key_signing_twice_counts_once(world: World, spoke) -> None:
    approvers = [CryptoSigner.generate_ed25519() for _ in range(2)]
    world.repo.add_model_family("letters", keys=[a.public_key for a in approvers], threshold=2)
    data = forged(world.repo.pending()[0].data, lambda s: None, approvers[0])
    doubled = json.loads(data)
    doubled["signatures"] *= 2
    with pytest.raises(MetadataRefused):
        world.repo.accept("model-letters", json.dumps(doubled).encode())


def test_one_key_under_two_names_counts_once(world: World, spoke) -> None:
    """The format lets a role list a key twice under different ids; two signatures by it would pass a threshold of two."""
    one = CryptoSigner.generate_ed25519()
    twin = type(one.public_key)("f" * 64, one.public_key.keytype, one.public_key.scheme, dict(one.public_key.keyval))
    with pytest.raises(Exception, match="twice"):
        world.repo.add_model_family("letters", keys=[one.public_key, twin], threshold=2)


def test_an_unknown_key(world: World, spoke) -> None:
    world.files["timestamp.json"] = forged(world.files["timestamp.json"], up, CryptoSigner.generate_ed25519())
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


def test_a_root_signed_by_one_of_three(world: World, spoke) -> None:
    world.files["2.root.json"] = forged(world.files["1.root.json"], up, stolen(world, "root-1"))
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


def test_a_skipped_root_version(world: World, spoke) -> None:
    def skip(signed: Root) -> None:
        signed.version = 3

    world.files["2.root.json"] = forged(world.files["1.root.json"], skip, stolen(world, "root-1"), stolen(world, "root-2"))
    with refused(spoke, Reason.METADATA_ROLLBACK):
        spoke.update(world.fetch)


def test_a_root_that_its_own_keys_did_not_sign(world: World, spoke) -> None:
    """Two old root keys alone cannot hand over to new ones who never agreed."""
    stranger = CryptoSigner.generate_ed25519()

    def usurp(signed: Root) -> None:
        up(signed)
        for keyid in list(signed.roles["root"].keyids):
            signed.revoke_key(keyid, "root")
        signed.roles["root"].threshold = 1
        signed.add_key(stranger.public_key, "root")

    world.files["2.root.json"] = forged(world.files["1.root.json"], usurp, stolen(world, "root-1"), stolen(world, "root-2"))
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


# ---- rollback, freeze, fast-forward, mix-and-match --------------------------------------------------------------------------


def test_rollback_of_timestamp(world: World, spoke) -> None:
    old = world.files["timestamp.json"]
    world.clock.advance(DAY)
    world.release("digits@2")
    spoke.update(world.fetch)
    world.files["timestamp.json"] = old
    with refused(spoke, Reason.METADATA_ROLLBACK):
        spoke.update(world.fetch)


def test_rollback_of_snapshot_by_whoever_stole_the_timestamp_key(world: World, spoke) -> None:
    old = world.files["snapshot.json"]
    world.release("digits@2")
    spoke.update(world.fetch)

    def back(signed: Timestamp) -> None:
        up(signed)
        signed.snapshot_meta = type(signed.snapshot_meta).from_data(json.loads(old)["signed"]["version"], old, ["sha256"])

    world.files["snapshot.json"] = old
    world.files["timestamp.json"] = forged(world.files["timestamp.json"], back, stolen(world, "timestamp"))
    with refused(spoke, Reason.METADATA_ROLLBACK):
        spoke.update(world.fetch)


@pytest.mark.parametrize("name", ["targets.json", "model-digits.json"])
def test_rollback_of_a_targets_role_by_whoever_stole_the_online_keys(world: World, spoke, name: str) -> None:
    old = world.files[name]
    world.release("digits@2")
    world.repo.deny(digest_of(b"bad"))
    world.publish()
    spoke.update(world.fetch)
    world.files[name] = old
    hang_together(world, "snapshot", "timestamp")
    with refused(spoke, Reason.METADATA_ROLLBACK):
        spoke.update(world.fetch)


def test_dropping_a_role_from_the_snapshot(world: World, spoke) -> None:
    hang_together(world, "snapshot", "timestamp")

    def drop(signed: Snapshot) -> None:
        del signed.meta["model-digits.json"]

    world.files["snapshot.json"] = forged(world.files["snapshot.json"], drop, stolen(world, "snapshot"))

    def timestamp(signed: Timestamp) -> None:
        version = json.loads(world.files["snapshot.json"])["signed"]["version"]
        signed.snapshot_meta = type(signed.snapshot_meta).from_data(version, world.files["snapshot.json"], ["sha256"])

    world.files["timestamp.json"] = forged(world.files["timestamp.json"], timestamp, stolen(world, "timestamp"))
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


def test_freeze(world: World, spoke) -> None:
    """The attacker goes on delivering what was once current: after its time the spoke takes nothing new, and says so."""
    world.clock.advance(8 * DAY)
    with refused(spoke, Reason.METADATA_EXPIRED):
        spoke.update(world.fetch)
    assert spoke.released().stale


def test_fast_forward_and_its_recovery(world: World, spoke) -> None:
    """A stolen timestamp key counts up to the end; a roll by root makes the spoke forget what that key said."""

    def far(signed: Timestamp) -> None:
        signed.version = 2**31

    world.files["timestamp.json"] = forged(world.files["timestamp.json"], far, stolen(world, "timestamp"))
    spoke.update(world.fetch)
    world.clock.advance(DAY)
    world.release("digits@2")
    with refused(spoke, Reason.METADATA_ROLLBACK):
        spoke.update(world.fetch)
    world.repo.roll("timestamp")
    world.publish()
    assert spoke.update(world.fetch).version(ModelRef("digits", 2)) is not None


def test_fast_forward_of_snapshot_and_targets_and_its_recovery(world: World, spoke) -> None:
    def far(signed) -> None:
        signed.version = 2**31

    world.files["targets.json"] = forged(world.files["targets.json"], far, stolen(world, "targets"))
    hang_together(world, "snapshot", "timestamp")
    spoke.update(world.fetch)
    world.clock.advance(DAY)
    world.repo.roll("snapshot")
    world.repo.roll("targets")
    world.release("digits@2")
    world.repo.refresh_online(max_age=timedelta(0))
    world.publish()
    for _ in range(5):
        world.repo.refresh_online(max_age=timedelta(0))
    world.publish()
    assert spoke.update(world.fetch).version(ModelRef("digits", 2)) is not None


def test_a_roll_that_only_raises_the_threshold_leaves_no_spoke_behind(world: World, spoke) -> None:
    two = [CryptoSigner.generate_ed25519() for _ in range(2)]
    for signer in two:
        (world.repo.folder / "online" / f"timestamp-{signer.public_key.keyid[:6]}.pem").write_bytes(signer.private_bytes)
        (world.repo.folder / "online" / f"timestamp-{signer.public_key.keyid[:6]}.pem").chmod(0o600)
    for threshold in (1, 2):
        world.repo.roll("timestamp", keys=[s.public_key for s in two], threshold=threshold)
        world.publish()
        assert spoke.update(world.fetch).version(ModelRef("digits", 1)) is not None


def test_fast_forward_of_time_and_its_recovery(world: World, spoke) -> None:
    """Whoever has the timestamp key can claim that it is 2099: everything expires, until root replaces the key."""

    def far(signed: Timestamp) -> None:
        up(signed)
        future = world.clock.now() + timedelta(days=30_000)
        signed.expires = future + timedelta(days=1)
        signed.unrecognized_fields["x-spokeshave"]["issued"] = future.isoformat()

    world.files["timestamp.json"] = forged(world.files["timestamp.json"], far, stolen(world, "timestamp"))
    with refused(spoke, Reason.METADATA_EXPIRED):
        spoke.update(world.fetch)
    world.repo.roll("timestamp")
    world.publish()
    assert not spoke.update(world.fetch).expired


def test_mix_and_match(world: World, spoke) -> None:
    """Each file is rightly signed, but they never were current together."""
    before = dict(world.files)
    world.release("digits@2")
    world.files["snapshot.json"] = before["snapshot.json"]
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


def test_another_deny_list_than_the_signed_one(world: World, spoke) -> None:
    world.repo.deny(digest_of(b"bad"))
    world.publish()
    world.files["deny.json"] = b'{"digests":[],"kind":"deny-list","schema":1}'
    with pytest.raises(Exception, match=r"deny\.json"):
        spoke.update(world.fetch)
    assert spoke.released().denied == frozenset()


# ---- endless data and nonsense ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("2.root.json", 600_000), ("timestamp.json", 20_000), ("snapshot.json", 3_000_000)])
def test_endless_data(world: World, spoke, name: str, size: int) -> None:
    world.release("digits@2")
    world.files[name] = b" " * size + world.files.get(name, b"{}")
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"null", b"[]", b"\xff\xfe", b'{"signed":{"_type":"timestamp"},"signatures":[]}', b"[" * 10_000]
)
@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json"])
def test_junk(world: World, spoke, name: str, junk: bytes) -> None:
    world.files[name] = junk
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


def test_a_role_in_the_place_of_another(world: World, spoke) -> None:
    world.files["timestamp.json"] = world.files["snapshot.json"]
    with refused(spoke, Reason.METADATA_INVALID):
        spoke.update(world.fetch)


def test_an_endless_chain_of_roots_ends(world: World, spoke) -> None:
    signers = [stolen(world, f"root-{n}") for n in (1, 2)]
    data = world.files["1.root.json"]
    for version in range(2, 300):
        data = forged(data, up, *signers)
        world.files[f"{version}.root.json"] = data
    assert spoke.update(world.fetch).versions["root"] <= 257


# ---- delegated roles -------------------------------------------------------------------------------------------------------


def test_a_role_kept_from_an_old_delegator_must_please_the_current_one(world: World, spoke) -> None:
    """After a theft of the family's key, targets names another. The held file is of the right version but by the stolen key."""
    held = world.files["model-digits.json"]
    new = CryptoSigner.generate_ed25519()
    world.repo.roll("model-digits", keys=[new.public_key])
    world.publish()
    assert world.files["model-digits.json"] == held
    released = spoke.update(world.fetch)
    assert released.refused["model-digits"].reason is Reason.METADATA_INVALID
    assert released.version(ModelRef("digits", 1)) is None
    proposal = next(p for p in world.repo.pending() if p.role == "model-digits")
    assert world.repo.accept("model-digits", forged(proposal.data, lambda s: None, new)).complete
    world.publish()
    assert spoke.update(world.fetch).version(ModelRef("digits", 1)) is not None


def test_a_bad_family_does_not_take_the_others_with_it(world: World, spoke) -> None:
    world.release("letters@1")
    world.files["model-letters.json"] = forged(world.files["model-letters.json"], evil, stolen(world, "timestamp"))
    hang_together(world, "snapshot", "timestamp")
    released = spoke.update(world.fetch)
    assert released.version(ModelRef("digits", 1)) is not None
    assert set(released.refused) == {"model-letters"}

"""k of n people approve: the hub proposes, people sign elsewhere, the hub publishes what has enough signatures."""

import json

import pytest
from securesystemslib.signer import CryptoSigner

from model_formats.core.types import ModelRef, digest_of
from sync.core.types import Reason
from sync.trust.errors import KeyMissing, MetadataRefused
from sync.trust.metadata import ReleaseInvalid, Repository, add_signature
from tests.samples.trust_world import POLICY, World

PEOPLE = [CryptoSigner.generate_ed25519() for _ in range(3)]


@pytest.fixture
def hub(world: World) -> Repository:
    """The same repository as a running hub opens it: without the offline keys. Two of three people approve digits."""
    world.repo.add_model_family("digits", keys=[p.public_key for p in PEOPLE], threshold=2)
    running = Repository(world.repo.folder, keys=world.folder / "none", clock=world.clock)
    first = running.pending()[0]
    assert running.accept("model-digits", add_signature(first.data, *PEOPLE[:2])).complete
    return running


def release(hub: Repository, version: int = 1):
    return hub.release(
        ModelRef("digits", version),
        digest_of(str(version).encode()),
        1,
        signature_digest=digest_of(b"s"),
        signature_size=1,
        zones=("me",),
        publishers=POLICY,
    )


def released(world: World, version: int) -> bool:
    world.publish()
    return world.spoke().update(world.fetch).version(ModelRef("digits", version)) is not None


def test_one_of_two_approvals_releases_nothing(world: World, hub: Repository) -> None:
    proposal = release(hub)
    answer = hub.accept("model-digits", add_signature(proposal.data, PEOPLE[0]))
    assert (answer.signed, answer.threshold, answer.complete) == (1, 2, False)
    assert not released(world, 1)


def test_approvals_given_on_two_machines_add_up(world: World, hub: Repository) -> None:
    proposal = release(hub)
    hub.accept("model-digits", add_signature(proposal.data, PEOPLE[0]))
    assert hub.accept("model-digits", add_signature(proposal.data, PEOPLE[2])).complete
    assert hub.pending() == []
    assert released(world, 1)


def test_asking_again_for_the_same_keeps_the_approvals(hub: Repository) -> None:
    hub.accept("model-digits", add_signature(release(hub).data, PEOPLE[0]))
    assert release(hub).signed == 1


def test_asking_for_more_needs_new_approvals_for_all_of_it(world: World, hub: Repository) -> None:
    hub.accept("model-digits", add_signature(release(hub, 1).data, PEOPLE[0]))
    proposal = release(hub, 2)
    assert proposal.signed == 0
    assert hub.accept("model-digits", add_signature(proposal.data, *PEOPLE)).complete
    assert released(world, 1)
    assert released(world, 2)


def test_an_approval_of_what_was_overtaken_is_refused(hub: Repository) -> None:
    old = release(hub, 1)
    hub.accept("model-digits", add_signature(old.data, *PEOPLE))
    with pytest.raises(MetadataRefused) as e:
        hub.accept("model-digits", add_signature(old.data, *PEOPLE))
    assert e.value.reason is Reason.METADATA_ROLLBACK


def test_a_stranger_can_neither_approve_nor_lengthen_the_file(hub: Repository) -> None:
    proposal = release(hub)
    with pytest.raises(MetadataRefused):
        hub.accept("model-digits", add_signature(proposal.data, CryptoSigner.generate_ed25519()))
    answer = hub.accept("model-digits", add_signature(proposal.data, PEOPLE[0], CryptoSigner.generate_ed25519()))
    assert len(json.loads(answer.data)["signatures"]) == 1


@pytest.mark.parametrize("role", ["snapshot", "timestamp", "model-letters", "targets"])
def test_a_proposal_for_another_role_is_refused(hub: Repository, role: str) -> None:
    with pytest.raises(MetadataRefused):
        hub.accept(role, add_signature(release(hub).data, *PEOPLE))


def test_a_released_version_never_changes(world: World) -> None:
    world.release("digits@1", b"one")
    with pytest.raises(ReleaseInvalid, match="another content"):
        world.release("digits@1", b"two")


@pytest.mark.parametrize(("fault", "words"), [({"zones": ()}, "zone"), ({"fallback": (1,)}, "lower versions")])
def test_terms_that_make_no_sense_are_refused(world: World, fault: dict, words: str) -> None:
    with pytest.raises(ReleaseInvalid, match=words):
        world.release("digits@1", **fault)


def test_a_hub_without_its_online_keys_says_which_is_missing(world: World) -> None:
    (world.repo.folder / "online" / "director.pem").unlink()
    with pytest.raises(KeyMissing, match="director"):
        _ = world.repo.director

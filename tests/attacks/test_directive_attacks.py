"""Attacks on the hub's word to a spoke, and on what it may choose: verifier steps 1 to 9."""

import json
from dataclasses import replace

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from model_formats.core.errors import RefusedError
from model_formats.core.types import ModelRef, digest_of
from sync.core.types import Reason, SpokeId
from sync.protocol.messages import Directive, Status
from sync.trust.dsse import seal, unseal
from sync.trust.errors import EnvelopeRefused, MetadataRefused, TrustRefused
from sync.trust.verifier import verify_directive, verify_release
from tests.samples.trust_world import CLINIC, DAY, World, desired


def accept(world: World, data: bytes, *, last: int = 0, me: SpokeId = CLINIC, zone: str = "me", **options) -> Directive:
    released = world.spoke().update(world.fetch)
    return verify_directive(data, released, me, zone, last, world.clock.now(), **options)


def refusal(call, *args, **options) -> Reason:
    with pytest.raises(TrustRefused) as e:
        call(*args, **options)
    return e.value.reason


# ---- the directive ----------------------------------------------------------------------------------------------------------


def test_the_hubs_directive_is_accepted(world: World) -> None:
    directive = accept(world, world.directive(desired("digits@1")))
    assert directive.models[0].model == "digits"


def test_a_directive_by_another_key(world: World) -> None:
    directive = unseal(world.directive(), [world.repo.director.public_key], Directive)
    forged = seal(directive, CryptoSigner.generate_ed25519())
    assert refusal(accept, world, forged) is Reason.DIRECTIVE_UNTRUSTED


def test_a_directive_signed_with_an_online_key_that_is_not_the_directors(world: World) -> None:
    directive = unseal(world.directive(), [world.repo.director.public_key], Directive)
    forged = seal(directive, next(world.repo._files.signers(world.repo.root.roles["snapshot"].keyids)))
    assert refusal(accept, world, forged) is Reason.DIRECTIVE_UNTRUSTED


def test_a_directive_by_a_director_who_was_replaced(world: World) -> None:
    old = world.directive()
    world.repo.roll("director")
    world.publish()
    assert refusal(accept, world, old) is Reason.DIRECTIVE_UNTRUSTED
    assert accept(world, world.directive()).generation == 1


def test_a_new_directive_on_frozen_metadata_and_an_old_one_that_goes_on(world: World) -> None:
    """A thief with the director's key holds back the metadata that replaces it, and would retire all models."""
    data = world.directive(generation=2, days=60)
    released = replace(world.spoke().update(world.fetch), expired=("timestamp",))
    now = world.clock.now()
    assert refusal(verify_directive, data, released, CLINIC, "me", 1, now) is Reason.METADATA_EXPIRED
    assert verify_directive(data, released, CLINIC, "me", 2, now).generation == 2


@pytest.mark.parametrize("me", [SpokeId("dubai"), SpokeId("clinic", "second")])
def test_a_directive_for_another_spoke(world: World, me: SpokeId) -> None:
    assert refusal(accept, world, world.directive(spoke=me)) is Reason.WRONG_RECIPIENT


def test_a_directive_for_another_zone(world: World) -> None:
    assert refusal(accept, world, world.directive(zone="eu")) is Reason.WRONG_RECIPIENT


def test_a_replayed_directive(world: World) -> None:
    assert refusal(accept, world, world.directive(generation=4), last=5) is Reason.DIRECTIVE_REPLAYED


def test_the_same_directive_again_is_no_replay(world: World) -> None:
    data = world.directive(generation=5)
    first = accept(world, data)
    assert accept(world, data, last=5, last_digest=first.digest) == first


def test_two_directives_of_one_generation(world: World) -> None:
    first = accept(world, world.directive(generation=5))
    other = world.directive(desired("digits@1"), generation=5)
    assert refusal(accept, world, other, last=5, last_digest=first.digest) is Reason.DIRECTIVE_REPLAYED


def test_an_expired_directive(world: World) -> None:
    data = world.directive(days=1)
    world.clock.advance(2 * DAY)
    assert refusal(accept, world, data) is Reason.DIRECTIVE_EXPIRED


def test_a_directive_that_expires_before_it_was_issued(world: World) -> None:
    assert refusal(accept, world, world.directive(days=-1)) is Reason.DIRECTIVE_EXPIRED


def test_an_oversized_directive(world: World) -> None:
    data = world.directive()
    assert refusal(accept, world, data[:-1] + b" " * 600_000 + b"}") is Reason.DIRECTIVE_UNTRUSTED


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"[]", b"null", b"\xff", b'{"payload":"!","payloadType":"x","signatures":[]}', b"[" * 9000]
)
def test_junk_for_a_directive(world: World, junk: bytes) -> None:
    assert refusal(accept, world, junk) is Reason.DIRECTIVE_UNTRUSTED


def test_a_thousand_signatures(world: World) -> None:
    envelope = json.loads(world.directive())
    envelope["signatures"] = [{"keyid": f"{n:064x}", "sig": "AA=="} for n in range(1000)]
    assert refusal(accept, world, json.dumps(envelope).encode()) is Reason.DIRECTIVE_UNTRUSTED


def test_another_kind_of_signed_document_is_no_directive(world: World) -> None:
    status = Status(site="clinic", spoke="main", online=True, time=world.clock.now())
    assert refusal(accept, world, seal(status, world.repo.director)) is Reason.DIRECTIVE_UNTRUSTED


def test_signed_bytes_that_are_not_canonical(world: World) -> None:
    honest = unseal(world.directive(), [world.repo.director.public_key], Directive)
    loose = Envelope(honest.canonical().replace(b",", b", "), "application/vnd.spokeshave.directive.v1+json", {})
    loose.sign(world.repo.director)
    assert refusal(accept, world, json.dumps(loose.to_dict()).encode()) is Reason.DIRECTIVE_UNTRUSTED


# ---- the release ------------------------------------------------------------------------------------------------------------


def choose(world: World, ref: str, *, zone: str = "me", regime="ae-health", current: int | None = None, index: str = ""):
    return verify_release(desired(ref, index), world.spoke().update(world.fetch), zone, regime, current)


def test_a_released_version_may_run(world: World) -> None:
    world.release("digits@1", zones=("me",), fallback=())
    release = choose(world, "digits@1")
    assert (release.index, release.index_size, release.zones) == (digest_of(b"digits@1"), 8, ("me",))


def test_a_version_that_was_never_released(world: World) -> None:
    world.release("digits@1", zones=("me",))
    assert refusal(choose, world, "digits@2") is Reason.NOT_RELEASED
    assert refusal(choose, world, "letters@1") is Reason.NOT_RELEASED


def test_a_stolen_director_choosing_another_content_for_a_released_version(world: World) -> None:
    world.release("digits@1", zones=("me",))
    assert refusal(choose, world, "digits@1", index=digest_of(b"evil")) is Reason.NOT_RELEASED


def test_a_package_for_another_zone(world: World) -> None:
    world.release("digits@1", zones=("eu",))
    assert refusal(choose, world, "digits@1") is Reason.ZONE_FORBIDDEN


def test_a_package_for_another_regime(world: World) -> None:
    world.repo.add_model_family("digits")
    world.repo.release(
        ModelRef("digits", 1),
        digest_of(b"digits@1"),
        8,
        signature_digest=digest_of(b"s"),
        signature_size=1,
        zones=("me",),
        publishers=world.publisher.policy,
        regimes=("gdpr",),
    )
    world.publish()
    assert refusal(choose, world, "digits@1") is Reason.REGIME_FORBIDDEN
    assert choose(world, "digits@1", regime="gdpr").ref.version == 1


def test_a_step_back_that_nobody_granted(world: World) -> None:
    for version in (1, 2, 3):
        world.release(f"digits@{version}", zones=("me",))
    assert refusal(choose, world, "digits@1", current=3) is Reason.DOWNGRADE_NOT_GRANTED


def test_a_step_back_that_the_release_granted(world: World) -> None:
    world.release("digits@1", zones=("me",))
    world.release("digits@2", zones=("me",), fallback=(1,))
    assert choose(world, "digits@1", current=2).going_back
    assert not choose(world, "digits@2", current=1).going_back


def test_a_grant_to_one_version_is_not_a_grant_to_another(world: World) -> None:
    world.release("digits@1", zones=("me",))
    world.release("digits@2", zones=("me",))
    world.release("digits@3", zones=("me",), fallback=(2,))
    assert refusal(choose, world, "digits@1", current=3) is Reason.DOWNGRADE_NOT_GRANTED


def test_the_deny_list_wins_over_a_grant(world: World) -> None:
    world.release("digits@1", zones=("me",))
    world.release("digits@2", zones=("me",), fallback=(1,))
    world.repo.deny(digest_of(b"digits@1"))
    world.publish()
    assert refusal(choose, world, "digits@1", current=2) is Reason.DENIED


def test_from_a_denied_version_one_may_go_back_without_a_grant(world: World) -> None:
    world.release("digits@1", zones=("me",))
    world.release("digits@2", zones=("me",))
    world.repo.deny(digest_of(b"digits@2"))
    world.publish()
    assert choose(world, "digits@1", current=2).going_back


def test_nothing_new_is_taken_on_expired_metadata(world: World) -> None:
    world.release("digits@1", zones=("me",))
    released = world.spoke().update(world.fetch)
    with pytest.raises(MetadataRefused) as e:
        verify_release(desired("digits@1"), replace(released, expired=("timestamp",)), "me", "gdpr")
    assert e.value.reason is Reason.METADATA_EXPIRED


def test_every_refusal_says_why_and_what_to_do(world: World) -> None:
    with pytest.raises(RefusedError) as e:
        accept(world, world.directive(zone="eu"))
    assert "zone eu" in e.value.message
    assert e.value.hint
    assert isinstance(EnvelopeRefused(Reason.NONE, "x"), RefusedError)

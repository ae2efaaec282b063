import pytest

from hub.services.releases import NotPushed, ReleaseRequest, accept, deny, propose_release
from hub.store.versions import find_version, list_versions
from model_formats.core.types import ModelRef, digest_of
from model_formats.signing.publisher_policy import PublisherPolicy
from model_formats.signing.signature import KeySigner, PublisherUntrusted
from sync.trust.keys import load_signer, role_signer
from sync.trust.metadata import ReleaseInvalid, add_signature

ONE = ModelRef("digits", 1)


def versions(house):
    with house.hub.database.read() as db:
        return list_versions(db)


@pytest.fixture
def pushed(house):
    house.approver()
    return house.push(1)


def request(house, pushed, **changes):
    index, signature = pushed
    fields = {"ref": ONE, "index": index, "signature": signature, "publishers": house.publisher.policy, **changes}
    return ReleaseRequest(**fields)


def test_nothing_is_released_until_the_approver_has_signed(house, pushed):
    proposal = propose_release(house.hub, request(house, pushed), "ann")
    assert (proposal.complete, proposal.signed, proposal.threshold) == (False, 0, 1)
    assert versions(house) == []
    assert house.sign(proposal, "model-digits").complete
    with house.hub.database.read() as db:
        found = find_version(db, ONE)
    assert (found.index, found.zones, found.claim) == (pushed[0], ("me", "eu"), 0.98)


def test_a_signature_by_somebody_else_does_not_release(house, pushed):
    proposal = propose_release(house.hub, request(house, pushed), "ann")
    with pytest.raises(Exception, match="signed by nobody who may sign it"):
        accept(house.hub, proposal.role, add_signature(proposal.data, role_signer()), "eve")
    assert versions(house) == []


def test_the_running_hub_finds_no_offline_key(house):
    for name in ("root-1", "targets"):
        assert load_signer(house.hub.home.keys / f"{name}.pem")
    assert not (house.hub.repository.keys).exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"ref": ModelRef("digits", 2)}, NotPushed, "the package is digits@1"),
        ({"index": digest_of(b"other")}, NotPushed, "not in the registry"),
        ({"signature": digest_of(b"other")}, NotPushed, "not in the registry"),
        ({"publishers": PublisherPolicy()}, PublisherUntrusted, "0 keys"),
        ({"publishers": KeySigner.generate().policy}, PublisherUntrusted, "not among"),
        ({"zones": ("me", "us")}, NotPushed, "zone us is outside"),
        ({"fallback": (1,)}, ReleaseInvalid, "only to lower versions"),
    ],
)
def test_what_may_not_be_released_is_refused_and_changes_nothing(house, pushed, change, error, words):
    with pytest.raises(error, match=words):
        propose_release(house.hub, request(house, pushed, **change), "ann")
    assert house.hub.repository.pending() == []
    assert versions(house) == []


def test_a_released_version_never_changes(house, pushed):
    house.sign(propose_release(house.hub, request(house, pushed), "ann"), "model-digits")
    other = house.push(1, name="other", weights=b"other weights")
    with pytest.raises(ReleaseInvalid, match="released with another content"):
        propose_release(house.hub, request(house, other), "ann")


def test_a_version_keeps_the_day_it_was_released_when_another_is(house):
    house.release(1)
    first = versions(house)[0].published
    house.clock.advance(3600)
    house.release(2)
    published = {v.ref.version: v.published for v in versions(house)}
    assert published == {1: first, 2: first + 3600}


def test_a_denial_needs_the_targets_key(house, pushed):
    proposal = deny(house.hub, [pushed[0]], "ann")
    assert not proposal.complete
    assert house.sign(proposal, "targets").complete
    assert pushed[0].encode() in house.hub.repository.files()["deny.json"]

"""Attacks on the bytes of a released package: verifier steps 10 to 13."""

import json

import pytest

from model_formats.core.types import digest_of
from model_formats.package.read import open_package
from model_formats.signing.signature import KeySigner, sign_package
from sync.core.types import Reason
from sync.trust.errors import TrustRefused
from sync.trust.verifier import verify_contents, verify_release
from tests.samples.trust_world import World, desired


def verify(world: World, layout, index: str, bundle: bytes, zone: str = "eu", regime="gdpr", variant: str | None = "onnx-int8"):
    released = world.spoke().update(world.fetch)
    release = verify_release(desired("digits@1", index), released, zone, regime)
    return verify_contents(open_package(layout, index), bundle, release, released, zone, regime, variant=variant)


def refusal(*args, **options) -> Reason:
    with pytest.raises(TrustRefused) as e:
        verify(*args, **options)
    return e.value.reason


def test_what_was_released_and_signed_is_accepted(world: World) -> None:
    layout, index, signature = world.publish_package("digits@1")
    assert verify(world, layout, index, layout.path(signature).read_bytes()).kind == "key"


def test_a_flipped_bit_in_the_model(world: World) -> None:
    layout, index, signature = world.publish_package("digits@1")
    weights = open_package(layout, index).path("variants/onnx-int8/model.onnx")
    data = weights.read_bytes()
    weights.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    assert refusal(world, layout, index, layout.path(signature).read_bytes()) is Reason.PACKAGE_TAMPERED


def test_the_signature_of_another_publisher(world: World) -> None:
    layout, index, _ = world.publish_package("digits@1")
    assert refusal(world, layout, index, sign_package(layout, index, KeySigner.generate())) is Reason.PUBLISHER_UNTRUSTED


def test_a_publisher_who_is_not_in_the_released_policy(world: World) -> None:
    """The release names another key than the one that signed, as after a publisher was replaced."""
    world.publisher = KeySigner.generate()
    layout, index, signature = world.publish_package("letters@1")
    bundle = layout.path(signature).read_bytes()
    world.release("digits@1", layout.path(index).read_bytes(), signature=bundle, policy=KeySigner.generate().policy)
    released = world.spoke().update(world.fetch)
    release = verify_release(desired("digits@1", index), released, "eu", "gdpr")
    with pytest.raises(TrustRefused) as e:
        verify_contents(open_package(layout, index), bundle, release, released, "eu", "gdpr")
    assert e.value.reason is Reason.PACKAGE_INVALID  # it says letters@1: one family's package under another's name


def test_a_package_whose_own_label_forbids_the_zone(world: World) -> None:
    layout, index, signature = world.publish_package("digits@1", zones=("me", "eu", "us"))
    assert refusal(world, layout, index, layout.path(signature).read_bytes(), zone="us") is Reason.ZONE_FORBIDDEN


def test_a_package_whose_own_label_forbids_the_regime(world: World) -> None:
    layout, index, signature = world.publish_package("digits@1")
    assert refusal(world, layout, index, layout.path(signature).read_bytes(), regime="ae-health") is Reason.REGIME_FORBIDDEN


def test_another_released_package_in_its_place(world: World) -> None:
    layout, index, signature = world.publish_package("digits@1")
    other_layout, other, _ = world.publish_package("digits@2")
    released = world.spoke().update(world.fetch)
    release = verify_release(desired("digits@1", index), released, "eu", "gdpr")
    with pytest.raises(TrustRefused) as e:
        verify_contents(open_package(other_layout, other), layout.path(signature).read_bytes(), release, released, "eu", "gdpr")
    assert e.value.reason is Reason.PACKAGE_TAMPERED


@pytest.mark.parametrize("what", ["file", "publisher"])
def test_a_denied_file_or_publisher(world: World, what: str) -> None:
    layout, index, signature = world.publish_package("digits@1")
    bundle = layout.path(signature).read_bytes()
    hint = json.loads(bundle)["verificationMaterial"]["publicKey"]["hint"]
    file = open_package(layout, index).files["variants/onnx-fp32/model.onnx"].digest
    world.repo.deny(file if what == "file" else f"sha256:{hint}")
    world.publish()
    assert refusal(world, layout, index, bundle) is Reason.DENIED


def test_an_index_that_is_not_the_released_one(world: World) -> None:
    _layout, _index, _ = world.publish_package("digits@1")
    with pytest.raises(TrustRefused) as e:
        verify_release(desired("digits@1", digest_of(b"other")), world.spoke().update(world.fetch), "eu", "gdpr")
    assert e.value.reason is Reason.NOT_RELEASED

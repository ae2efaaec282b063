"""`hub model publish` signs by key, by certificate, or keyless; what it trusts for that goes into the release."""

import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization

from hub.cli import group
from hub.client import signing
from model_formats.core.console import run
from model_formats.signing.signature import PublisherUntrusted, SigningKeyInvalid, sign_package, verify_package
from model_formats.signing.sigstore import SigstoreRefused
from tests.samples.certificates import Authority
from tests.samples.model_folder import packed, write_model_folder

NOW = datetime.now(UTC)


@pytest.fixture
def files(tmp_path):
    authority = Authority(NOW)
    key, certificate = authority.issue("ann@example.org")
    authority.write(tmp_path, key, certificate)
    leaf = certificate.public_bytes(serialization.Encoding.PEM).decode()
    (tmp_path / "chain.pem").write_text(leaf + authority.pem)
    return tmp_path


@pytest.mark.mosquitto
def test_a_version_signed_by_a_certificate_is_released_for_that_name_and_verifies(server, line, files):
    folder = write_model_folder(files / "digits")
    flags = ("--certificate", files / "chain.pem", "--certificate-key", files / "key.pem")
    assert line.ok("model", "publish", folder, *flags)["complete"]
    assert line.ok("model", "verify", "digits@1")["publisher"] == "ann@example.org"


def test_the_policy_trusts_the_name_under_the_given_root_and_nobody_elses(files):
    signer, policy = signing.by_certificate(
        files / "leaf.pem", files / "key.pem", root=files / "root.pem", name="ann@example.org"
    )
    layout, index = packed(files / "package")
    bundle = sign_package(layout, index, signer)
    assert verify_package(layout, index, bundle, policy, NOW).name == "ann@example.org"
    other = Authority(NOW).rule("ann@example.org")
    with pytest.raises(PublisherUntrusted, match="root of the policy"):
        verify_package(layout, index, bundle, policy.replace(certificates=(other,)), NOW)


@pytest.mark.parametrize(
    ("chain", "root", "name", "told"),
    [
        ("leaf.pem", None, None, "holds no root"),
        ("chain.pem", None, "bob@example.org", "not bob"),
        ("root.pem", None, None, "key"),
    ],
)
def test_a_certificate_that_cannot_be_trusted_later_is_refused_now(files, chain, root, name, told):
    with pytest.raises(SigningKeyInvalid, match=told):
        signing.by_certificate(files / chain, files / "key.pem", root=root, name=name)


def test_a_keyless_policy_names_identity_issuer_and_the_private_instances_root(files):
    (files / "token").write_text("header.payload.signature\n")
    (files / "config.json").write_text(json.dumps({"trustedRoot": {"mediaType": "x"}}))
    _, policy = signing.by_identity(
        "ann@example.org", "https://issuer.example", token=files / "token", config=files / "config.json"
    )
    assert policy.sigstore[0].identity == "ann@example.org"
    assert json.loads(policy.sigstore[0].trusted_root) == {"mediaType": "x"}
    (files / "config.json").write_text("{}")
    with pytest.raises(SigstoreRefused, match="trustedRoot"):
        signing.by_identity("a", "b", token=files / "token", config=files / "config.json")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--certificate", "chain.pem"], "--certificate-key"),
        (["--root", "root.pem"], "--certificate"),
        (["--identity", "ann@example.org"], "--issuer"),
        (["--identity-token", "key.pem"], "--identity"),
    ],
)
def test_flags_that_do_not_belong_together_are_told(files, capfd, monkeypatch, flags, told):
    monkeypatch.chdir(files)
    write_model_folder(files / "digits")
    assert run(group, ["--home", str(files), "model", "publish", "digits", *flags]) == 2
    assert told in capfd.readouterr().err

"""`hub model publish` and `hub model verify` as a user types them, keyless at a private instance, and by a certificate chain."""

import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization

from tests.samples.certificates import Authority
from tests.samples.model_folder import write_model_folder
from tests.sigstore.instance import Instance

WHO = "ml@example.org"
pytestmark = pytest.mark.mosquitto


@pytest.fixture(scope="module")
def instance():
    with Instance() as running:
        yield running


@pytest.fixture
def keyless(instance, tmp_path):
    """Flags of a keyless publisher; `who` is whom the token is for."""
    (tmp_path / "instance.json").write_text(instance.trust_config())

    def flags(who=WHO, *, life_s=60, token=True):
        (tmp_path / "token").write_text(instance.oidc.token(who, life_s=life_s) + "\n")
        config = ["--sigstore-config", tmp_path / "instance.json"]
        held = ["--identity-token", tmp_path / "token"] if token else []
        return ["--identity", WHO, "--issuer", instance.oidc.issuer, *config, *held]

    return flags


@pytest.fixture
def chain(tmp_path):
    """Flags of a publisher with a certificate under an intermediate."""
    root = Authority(datetime.now(UTC))
    between = Authority(datetime.now(UTC), "Between", under=root)
    key, leaf = between.issue(WHO)
    between.write(tmp_path, key, leaf)
    pems = leaf.public_bytes(serialization.Encoding.PEM).decode() + between.pem + root.pem
    (tmp_path / "chain.pem").write_text(pems)
    return ["--certificate", tmp_path / "chain.pem", "--certificate-key", tmp_path / "key.pem"]


def test_keyless_first_then_by_certificate_and_both_verify(server, line, keyless, chain, tmp_path):
    one, two = (write_model_folder(tmp_path / f"digits-{v}", version=v) for v in (1, 2))
    assert line.ok("model", "publish", one, *keyless())["complete"]
    seen = line.ok("model", "verify", "digits@1")
    assert (seen["publisher"], seen["signed_by"], seen["proof"]) == (WHO, "sigstore", "full")
    assert line.ok("model", "publish", two, *chain)["complete"]
    seen = line.ok("model", "verify", "digits@2")
    assert (seen["publisher"], seen["signed_by"]) == (WHO, "certificate")
    assert [v["version"] for v in line.ok("model", "list")] == [1, 2]


def test_publishing_again_keeps_the_first_signature_and_needs_no_second_token(server, line, keyless, tmp_path):
    folder = write_model_folder(tmp_path / "digits")
    first = line.ok("model", "publish", folder, *keyless())
    (again := keyless(life_s=-1))
    assert line.ok("model", "publish", folder, *again)["signature"] == first["signature"]


def test_the_token_of_a_ci_job_is_found_by_itself(server, line, keyless, instance, tmp_path, monkeypatch):
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", instance.oidc.token(WHO))
    folder = write_model_folder(tmp_path / "digits")
    assert line.ok("model", "publish", folder, *keyless(token=False))["complete"]
    assert line.ok("model", "verify", "digits@1")["publisher"] == WHO


def test_somebody_elses_token_releases_nothing_and_does_not_stand_in_the_way_of_the_right_one(server, line, keyless, tmp_path):
    folder = write_model_folder(tmp_path / "digits")
    status, _, error = line("model", "publish", folder, *keyless("mallory@example.org"))
    assert (status, code(error)) == (4, "publisher_untrusted")
    assert "mallory@example.org" in error
    assert line.ok("model", "list") == []
    assert line.ok("model", "publish", folder, *keyless())["complete"]
    assert line.ok("model", "verify", "digits@1")["publisher"] == WHO


def test_a_token_that_has_expired_is_told_and_nothing_is_released(server, line, keyless, tmp_path):
    status, _, error = line("model", "publish", write_model_folder(tmp_path / "digits"), *keyless(life_s=-5))
    assert (status, code(error)) == (2, "sigstore_refused")
    assert line.ok("model", "list") == []


def code(error):
    return json.loads(error.strip().splitlines()[-1])["error"]

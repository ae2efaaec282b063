"""The site key from a systemd credential or a PKCS#11 token; the token is a real SoftHSM2."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spoke_agent.data.crypto import site_key
from spoke_agent.data.errors import DataKeyLost, SiteKeyInvalid, SiteKeyUnavailable
from spoke_agent.data.store import DataStore, RowBatch, open_data
from spoke_agent.data.token import parse_address

MODULE = next((p for p in map(Path, ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")) if p.exists()), None)
needs_softhsm = pytest.mark.skipif(MODULE is None, reason="SoftHSM2 is not installed")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SoftHSM2 of our own with two tokens, `site` and `other`."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    for label in ("site", "other"):
        new_token(label)
    yield folder
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


def new_token(label: str) -> None:
    words = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "87654321", "--pin", "1234"]
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def home(tmp_path: Path, tokens: Path) -> Path:
    """A spoke's home whose site key is in the token, under a name of its own."""
    (tmp_path / "pin").write_text("1234\n")
    settle(tmp_path)
    return tmp_path


def settle(home: Path, token: str = "site", key: str | None = None) -> None:
    key = key or f"key-{home.name}"
    address = f"pkcs11:token={token};object={key}?module-path={MODULE}&pin-source=file:{home / 'pin'}"
    (home / "spoke.toml").write_text(f'site_key = "{address}"\n')


def fill(store: DataStore) -> None:
    rows = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    store.append(
        RowBatch("m", 1, "sha256:" + "0" * 64, ["a", "b"], np.full(2, time.time()), rows, {"y": np.zeros((2, 2), np.float32)})
    )


@needs_softhsm
def test_rows_are_read_again_with_the_token_and_no_key_is_on_the_disk(home: Path):
    store = open_data(home)
    fill(store)
    store.close()
    assert not (home / "identity" / "site.key").exists()
    again = open_data(home)
    (batch,) = again.batches("m")
    assert batch.inputs["x"][1].tolist() == [3, 4, 5]
    again.close()


@needs_softhsm
def test_the_key_in_the_token_cannot_be_taken_out(home: Path):
    import pkcs11

    open_data(home).close()
    with pkcs11.lib(str(MODULE)).get_token(token_label="site").open(user_pin="1234") as session:
        key = session.get_key(object_class=pkcs11.ObjectClass.SECRET_KEY, label=f"key-{home.name}")
        assert key[pkcs11.Attribute.SENSITIVE]
        assert not key[pkcs11.Attribute.EXTRACTABLE]
        with pytest.raises(pkcs11.exceptions.AttributeSensitive):
            _ = key[pkcs11.Attribute.VALUE]


@needs_softhsm
def test_a_wrong_pin_is_told_and_not_tried_until_the_token_locks(home: Path):
    open_data(home).close()
    (home / "pin").write_text("0000")
    with pytest.raises(SiteKeyUnavailable, match="refused the PIN"):
        open_data(home)
    for _ in range(20):
        with pytest.raises(SiteKeyUnavailable, match="not tried again"):
            open_data(home)
    (home / "pin").write_text("1234")
    open_data(home).close()


@needs_softhsm
def test_a_destroyed_key_is_a_lost_one_and_is_not_made_anew_over_old_rows(home: Path):
    import pkcs11

    store = open_data(home)
    fill(store)
    store.close()
    with pkcs11.lib(str(MODULE)).get_token(token_label="site").open(user_pin="1234", rw=True) as session:
        session.get_key(object_class=pkcs11.ObjectClass.SECRET_KEY, label=f"key-{home.name}").destroy()
    with pytest.raises(DataKeyLost, match="has no key"):
        open_data(home)


@needs_softhsm
def test_another_key_does_not_open_the_rows(home: Path):
    store = open_data(home)
    fill(store)
    store.close()
    site_key(home, (home / "spoke.toml").read_text().split('"')[1].replace("token=site", "token=other"), create=True)
    settle(home, token="other")
    with pytest.raises(DataKeyLost, match="another site key"):
        open_data(home)


@needs_softhsm
def test_a_missing_token_is_told_and_one_plugged_in_later_is_found(home: Path):
    settle(home, token=f"late-{home.name[-20:]}")
    with pytest.raises(SiteKeyUnavailable, match="no token"):
        open_data(home)
    assert not (home / "data.db").exists()
    new_token(f"late-{home.name[-20:]}")
    open_data(home).close()


@needs_softhsm
def test_two_that_both_come_first_agree_on_one_key(home: Path):
    words = "import sys; from pathlib import Path; from spoke_agent.data.store import open_data; open_data(Path(sys.argv[1]))"
    started = [subprocess.Popen([sys.executable, "-c", words, str(home)], stderr=subprocess.PIPE) for _ in range(3)]
    assert [p.communicate()[1].decode() for p in started] == [""] * 3


def test_a_systemd_credential_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "spoke.toml").write_text('site_key = "credential:site"\n')
    with pytest.raises(SiteKeyUnavailable, match="not given to this process"):
        open_data(tmp_path)
    (tmp_path / "given").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "given"))
    (tmp_path / "given" / "site").write_bytes(b"short")
    with pytest.raises(DataKeyLost, match="5 bytes"):
        open_data(tmp_path)
    (tmp_path / "given" / "site").write_bytes(bytes(range(32)))
    open_data(tmp_path).close()
    assert not (tmp_path / "identity").exists()


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("pkcs11:token=a;object=b?module-path=/m&pin-value=1234", "pin-value"),
        ("pkcs11:token=a;object=b?module-path=/m", "pin-source"),
        ("pkcs11:token=a?module-path=/m&pin-source=file:/p", "object or id"),
        ("pkcs11:object=b?module-path=/m&pin-source=file:/p", "token or serial"),
        ("pkcs11:token=a;colour=b?module-path=/m&pin-source=file:/p", "colour"),
        ("pkcs11:token=a;token=b?module-path=/m&pin-source=file:/p", "twice"),
        ("vault:secret", "vault"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_by_its_part(tmp_path: Path, address: str, wrong: str):
    with pytest.raises(SiteKeyInvalid, match=wrong):
        site_key(tmp_path, address, create=True)


def test_an_address_is_percent_decoded():
    found = parse_address("pkcs11:token=our%20site;id=%01%FF?module-path=%2Flib%2Fx.so&pin-source=file:///etc/pin")
    assert (found.token, found.id, found.module, found.pin_source) == ("our site", b"\x01\xff", "/lib/x.so", "file:///etc/pin")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):

    monkeypatch.setitem(sys.modules, "pkcs11", None)
    (tmp_path / "pin").write_text("1234")
    with pytest.raises(SiteKeyUnavailable, match="not installed") as told:
        site_key(tmp_path, f"pkcs11:token=a;object=b?module-path=/m&pin-source=file:{tmp_path / 'pin'}", create=True)
    assert "spokeshave[pkcs11]" in told.value.hint

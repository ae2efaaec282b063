from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_formats.core.document import DocumentRefused
from model_formats.package.oci import PackageInvalid, parse_index
from spoke_agent.outbox.policy import SitePolicy
from spoke_agent.site.slots import Slots

DIGEST = "sha256:" + "ab" * 32
SLOT = {"version": 1, "index": DIGEST, "variant": "onnx-int8"}
POLICY = {"site": "dubai", "regime": "gdpr"}


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"models": {"good": {"champion": SLOT}, "bad": {"champion": SLOT | {"version": "1"}}}}, "models.bad.champion.version"),
        ({"models": {"good": {}, "bad": 3}}, "models.bad: Expected `object`, got `int`"),
        ({"models": {"bad": {"champion": {k: SLOT[k] for k in ("version", "index")}}}}, "models.bad.champion.variant: missing"),
        ({"modles": {}}, "modles: unknown field"),
        ({"models": {"bad": {"champio": None}}}, "models.bad.champio: unknown field"),
        ({"models": {"Not A Name": {}}}, "key"),
        ({"kind": "policy"}, "kind: Invalid enum value 'policy'; must be slots"),
        ({"schema": 2}, "schema: Invalid enum value 2; must be 1"),
    ],
)
def test_the_field_is_named_down_to_the_key(plain: dict[str, Any], said: str):
    with pytest.raises(DocumentRefused) as refused:
        Slots.of_plain(plain)
    assert said in refused.value.problem


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"regime": "gpdr"}, "regime: Invalid enum value 'gpdr'; must be adgm, "),
        (
            {"allow": [{"kind": "ops"}, {"kind": "everything"}]},
            "allow.1.kind: Invalid enum value 'everything'; must be drift_hist, ",
        ),
        ({"site": "dubai\n"}, "site: Expected `str` matching regex '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'"),
        ({"epsilon_per_day": float("nan")}, "epsilon_per_day"),
        ({"epsilon_per_day": float("inf")}, "epsilon_per_day"),
        ({"allow": {"ops"}}, "allow: set has no place in JSON"),
        ({"round_to": True}, "round_to: Expected `int`, got `bool`"),
        ({"round_to": 5.0}, "round_to: Expected `int`, got `float`"),
        ({"epsilon_per_day": "1.0"}, "epsilon_per_day: Expected `float`, got `str`"),
        ({"allow": [{"kind": "ops"}, {"kind": "ops"}]}, "a kind is allowed twice"),
    ],
)
def test_the_rule_and_what_might_stand_there_are_told(plain: dict[str, Any], said: str):
    with pytest.raises(DocumentRefused) as refused:
        SitePolicy.of_plain(POLICY | plain)
    assert said in refused.value.problem


def test_what_breaks_a_rule_is_never_given_bytes():
    policy = SitePolicy(site="dubai", regime="gdpr", epsilon_per_day=1.0)
    with pytest.raises(DocumentRefused, match="round_to: Expected `int` <= 100"):
        policy.replace(round_to=101).canonical()
    with pytest.raises(DocumentRefused, match="site: Expected `str` matching"):
        policy.replace(site="two words").canonical()


def test_other_peoples_documents_are_refused_in_the_same_words():
    with pytest.raises(PackageInvalid, match=r"index: manifests\.0\.size: Expected `int` >= 0"):
        parse_index(b'{"schemaVersion":2,"manifests":[{"mediaType":"a/b","digest":"%s","size":-1}]}' % DIGEST.encode())


@pytest.mark.parametrize("number", ["1E400", "-1E400", "NaN", "Infinity", "99999999999999999999", "1.5", "0x10", ".5", "1e2"])
def test_numbers_that_no_document_can_hold_are_refused(number: str):
    text = Slots.of_plain({"models": {"digits": {"champion": SLOT}}}).canonical().decode()
    with pytest.raises(DocumentRefused):
        Slots.parse(text.replace('"version":1', f'"version":{number}').encode()).canonical()


WHOLE = Slots.of_plain({"models": {"digits": {"champion": SLOT, "last_good": SLOT | {"version": 2}}}}).canonical()
SCRAPS = st.binary(max_size=8) | st.sampled_from(
    [b"{", b"}", b"[", b"null", b"NaN", b"1E400", b"-0", b"\\ud800", b"\xed\xa0\x80", b"\x00", b'"models"', b"," * 9, b"[" * 9000]
)


@given(at=st.integers(0, len(WHOLE)), cut=st.integers(0, 60), scrap=SCRAPS)
def test_damaged_bytes_are_a_document_or_refused(at: int, cut: int, scrap: bytes):
    with suppress(DocumentRefused):
        found = Slots.parse(WHOLE[:at] + scrap + WHOLE[at + cut :])
        assert Slots.parse(found.canonical()) == found

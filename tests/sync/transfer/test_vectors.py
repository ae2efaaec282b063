"""The published vectors hold: another implementation may be built from docs/protocol-transfer.md."""

import hashlib
import hmac
import json
from pathlib import Path

from provisioning.identity.enrol import Code
from sync.protocol import topics
from sync.protocol.messages import Want
from sync.transfer.bitmap import decode, encode

VECTORS = json.loads((Path(__file__).parents[3] / "docs" / "vectors" / "transfer.json").read_text())


def test_bitmaps() -> None:
    for case in VECTORS["bitmaps"]:
        assert encode(case["blocks"]) == (case["start"], case["missing"])
        assert decode(case["start"], case["missing"], blocks=10**6, limit=10**6) == case["blocks"]


def test_a_want_on_its_topic() -> None:
    want = Want.parse(VECTORS["want"]["payload"].encode())
    assert want.canonical().decode() == VECTORS["want"]["payload"]
    assert decode(want.start, want.missing, blocks=100, limit=want.credit) == VECTORS["want"]["blocks"]
    digest = VECTORS["want"]["topic"].split("/")[5]
    assert topics.want("eu", digest) == VECTORS["want"]["topic"]
    assert topics.block("eu", digest, VECTORS["block"]["number"] * 131072) == VECTORS["block"]["topic"]


def test_a_code_its_key_and_a_proof() -> None:
    case = VECTORS["code"]
    key = Code.parse(case["text"]).key
    assert key == case["key"]
    proof = hmac.new(bytes.fromhex(key), case["proof_of_csr"]["csr"].encode(), hashlib.sha256).hexdigest()
    assert proof == case["proof_of_csr"]["proof"]

"""The published vectors hold, read with our code and with bare libraries where that is short."""

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from model_formats.core.errors import SpokeshaveError
from model_formats.core.types import digest_of
from sync.protocol.messages import Directive
from sync.trust.dsse import unseal
from sync.trust.encrypted_bundle import open_sealed
from sync.trust.keys import key_of_pem

VECTORS = json.loads((Path(__file__).parents[3] / "docs" / "vectors" / "trust.json").read_text())
ENVELOPES = [(group, e["name"]) for group in ("directive", "directive_p256") for e in VECTORS[group]["envelopes"]]


@pytest.mark.parametrize(("group", "name"), ENVELOPES)
def test_an_envelope_is_accepted_or_refused_as_published(group: str, name: str) -> None:
    vector = next(e for e in VECTORS[group]["envelopes"] if e["name"] == name)
    key = key_of_pem(VECTORS[group]["key"].encode())
    assert key.keyid == VECTORS[group]["key_id"]
    try:
        unseal(vector["envelope"].encode(), [key], Directive)
        found = "accept"
    except SpokeshaveError:
        found = "refuse"
    assert found == vector["expect"]


def test_the_good_envelope_verifies_with_nothing_but_cryptography() -> None:
    group = VECTORS["directive"]
    envelope = json.loads(next(e["envelope"] for e in group["envelopes"] if e["name"] == "good"))
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    pae = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    load_pem_public_key(group["key"].encode()).verify(base64.b64decode(envelope["signatures"][0]["sig"]), pae)
    assert payload.decode() == group["canonical"]
    assert rfc8785.dumps(json.loads(payload)) == payload


@pytest.mark.parametrize("vector", VECTORS["sealed"], ids=lambda v: str(v["clear_size"]))
def test_a_sealed_file_opens(vector: dict) -> None:
    private = ec.derive_private_key(int(vector["private_scalar"], 16), ec.SECP256R1())
    clear = b"".join(open_sealed(BytesIO(base64.b64decode(vector["sealed"])), private))
    assert (len(clear), digest_of(clear)) == (vector["clear_size"], vector["clear_sha256"])

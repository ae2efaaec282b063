"""The published vectors hold, by our code and by the page's words with bare libraries."""

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sync.core.types import SpokeId
from sync.federated.masks import masked, public_of, total

VECTORS = json.loads((Path(__file__).parents[3] / "docs" / "vectors" / "federated.json").read_text())
SITES = VECTORS["sites"]


def test_shares_and_total_are_as_published():
    keys = {SpokeId.parse(s["spoke"]): bytes.fromhex(s["key"]) for s in SITES}
    for site in SITES:
        me, secret = SpokeId.parse(site["spoke"]), bytes.fromhex(site["secret"])
        assert public_of(secret) == keys[me]
        peers = {s: k for s, k in keys.items() if s != me}
        assert list(masked(site["values"], me, secret, peers, VECTORS["cohort"])) == site["share"]
    assert (
        list(total(s["share"] for s in SITES))
        == VECTORS["total"]
        == [sum(c) for c in zip(*(s["values"] for s in SITES), strict=True)]
    )


def test_a_share_is_made_as_the_page_says():
    me = SITES[1]
    share = list(me["values"])
    for peer in (SITES[0], SITES[2]):
        own = X25519PrivateKey.from_private_bytes(bytes.fromhex(me["secret"]))
        shared = own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(peer["key"])))
        salt = bytes.fromhex(VECTORS["cohort"].removeprefix("sha256:"))
        key = HKDF(SHA256(), 32, salt, b"spokeshave masked sum v1").derive(shared)
        stream = Cipher(ChaCha20(key, bytes(16)), None).encryptor().update(bytes(6 * len(share)))
        sign = 1 if me["spoke"].split("/") < peer["spoke"].split("/") else -1
        for i in range(len(share)):
            share[i] += sign * int.from_bytes(stream[6 * i : 6 * i + 6], "little")
    assert [v % 2**48 for v in share] == me["share"]

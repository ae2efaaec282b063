"""Writes transfer.json: `python docs/vectors/make_transfer.py`. The test beside the code reads the file, not this script."""

import hashlib
import hmac
import json
from pathlib import Path

from provisioning.identity.enrol import Code
from sync.protocol import topics
from sync.protocol.messages import Want
from sync.transfer.bitmap import encode


def bitmaps() -> list[dict[str, object]]:
    """Block numbers and the bitmap that names them."""
    cases = ([0], list(range(8)), [5, 6, 20], [1000], [3, 70, 71, 4000])
    return [{"blocks": blocks, "start": encode(blocks)[0], "missing": encode(blocks)[1]} for blocks in cases]


def main() -> None:
    """Write the file."""
    digest = "sha256:" + hashlib.sha256(b"blob").hexdigest()
    want = Want(site="frankfurt", spoke="main", start=5, missing="wAE=", credit=3)
    code = Code("aaaaaaaa", "b" * 26, "c" * 32)
    found = {
        "bitmaps": bitmaps(),
        "want": {"topic": topics.want("eu", digest), "payload": want.canonical().decode(), "blocks": [5, 6, 20]},
        "block": {"topic": topics.block("eu", digest, 20 * 131072), "number": 20},
        "code": {"text": str(code), "key": code.key, "proof_of_csr": {"csr": "PEM", "proof": proof(code.key, b"PEM")}},
    }
    Path(__file__).with_name("transfer.json").write_text(json.dumps(found, indent=2) + "\n")


def proof(key: str, data: bytes) -> str:
    """HMAC-SHA256, hexadecimal."""
    return hmac.new(bytes.fromhex(key), data, hashlib.sha256).hexdigest()


if __name__ == "__main__":
    main()

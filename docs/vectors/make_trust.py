"""Make docs/vectors/trust.json: signed documents and a sealed file, good and bad, for other implementations.

Run: `python docs/vectors/make_trust.py`. Keys and one-time keys are fresh each time; the file in the repository stays valid.
"""

import base64
import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from model_formats.core.types import digest_of
from sync.protocol.messages import DesiredModel, Directive
from sync.trust.dsse import payload_type, seal
from sync.trust.encrypted_bundle import load_opener, seal_stream
from sync.trust.keys import device_signer, pem_of, role_signer

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def directive() -> Directive:
    """The document that all envelopes carry."""
    model = DesiredModel(model="digits", version=1, index=digest_of(b"index"))
    return Directive(
        site="clinic", spoke="main", zone="me", generation=1, issued=NOW, expires=NOW + timedelta(days=7), models=(model,)
    )


def envelopes(signer: CryptoSigner) -> list[dict[str, str]]:
    """One good envelope, and one for each fault."""
    document, kind = directive(), payload_type(Directive)
    stranger = role_signer()
    loose = Envelope(document.canonical().replace(b",", b", "), kind, {})
    loose.sign(signer)
    other = Envelope(document.canonical(), payload_type(Directive).replace("directive", "report"), {})
    other.sign(signer)
    doubled = json.loads(seal(document, signer))
    doubled["signatures"] *= 2
    damaged = json.loads(seal(document, signer))
    damaged["payload"] = base64.b64encode(document.canonical().replace(b"clinic", b"cl1nic")).decode()
    made = {
        "good": seal(document, signer).decode(),
        "signed by a stranger": seal(document, stranger).decode(),
        "not canonical": json.dumps(loose.to_dict()),
        "another payload type": json.dumps(other.to_dict()),
        "one signature twice": json.dumps(doubled),
        "payload changed after signing": json.dumps(damaged),
    }
    return [{"name": name, "envelope": text, "expect": "accept" if name == "good" else "refuse"} for name, text in made.items()]


def sealed(signer: CryptoSigner, clear: bytes) -> dict[str, object]:
    """A sealed file with the private key that opens it."""
    out = BytesIO()
    seal_stream(BytesIO(clear), out, signer.public_key)
    return {
        "private_scalar": f"{load_opener(signer.private_bytes).private_numbers().private_value:064x}",
        "sealed": base64.b64encode(out.getvalue()).decode(),
        "clear_size": len(clear),
        "clear_sha256": digest_of(clear),
    }


def main() -> None:
    """Write the file."""
    director, device = role_signer(), device_signer()
    vectors = {
        "directive": {
            "canonical": directive().canonical().decode(),
            "payload_type": payload_type(Directive),
            "key": pem_of(director.public_key),
            "key_id": director.public_key.keyid,
            "envelopes": envelopes(director),
        },
        "directive_p256": {"key": pem_of(device.public_key), "key_id": device.public_key.keyid, "envelopes": envelopes(device)},
        "sealed": [sealed(device, b""), sealed(device, b"spokeshave"), sealed(device, bytes(65_536 + 1))],
    }
    Path(__file__).with_name("trust.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()

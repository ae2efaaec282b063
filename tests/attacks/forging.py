"""What an attacker does to metadata on its way: change it, and sign it with whatever keys he has."""

import json
from collections.abc import Callable
from typing import Protocol

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets, Timestamp

from sync.trust.keys import load_signer
from sync.trust.metadata import Repository


class Wire(Protocol):
    """A repository, and what the way from it to the spokes delivers."""

    repo: Repository
    files: dict[str, bytes]


def stolen(wire: Wire, name: str) -> CryptoSigner:
    """A key out of the hub's folders."""
    online = wire.repo.folder / "online" / f"{name}.pem"
    return load_signer(online if online.exists() else wire.repo.keys / f"{name}.pem")


def forged(data: bytes, change: Callable, *signers: CryptoSigner) -> bytes:
    """Metadata with its content changed, and signed by the attacker's keys."""
    metadata = Metadata.from_bytes(data)
    change(metadata.signed)
    if signers:
        metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def evil(signed: Targets) -> None:
    path = "models/digits/2/index.json"
    signed.targets[path] = TargetFile(3, {"sha256": "0" * 64}, path, {"custom": {}})
    signed.version += 1


def hang_together(wire: Wire, *online: str) -> None:
    """Make snapshot and timestamp fit the falsified files, as whoever stole the online keys can."""
    keys = {name: stolen(wire, name) for name in online}
    listed = {n: d for n, d in wire.files.items() if n == "targets.json" or n.startswith("model-")}

    def snapshot(signed: Snapshot) -> None:
        for name, data in listed.items():
            signed.meta[name] = type(signed.meta[name]).from_data(json.loads(data)["signed"]["version"], data, ["sha256"])
        signed.version += 1

    wire.files["snapshot.json"] = forged(wire.files["snapshot.json"], snapshot, keys["snapshot"])

    def timestamp(signed: Timestamp) -> None:
        version = json.loads(wire.files["snapshot.json"])["signed"]["version"]
        signed.snapshot_meta = type(signed.snapshot_meta).from_data(version, wire.files["snapshot.json"], ["sha256"])
        signed.version += 1

    wire.files["timestamp.json"] = forged(wire.files["timestamp.json"], timestamp, keys["timestamp"])


def up(signed) -> None:
    signed.version += 1

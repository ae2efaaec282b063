"""Where a TUF repository lies: metadata, small targets, proposals and private keys, as files.

metadata/<n>.root.json  targets.json  model-<family>.json  snapshot.json  timestamp.json
targets/<sha256>        small targets; a newer one may lie beside the published one and wait for signatures
pending/<role>.json     proposals
online/*.pem            snapshot, timestamp, director
<keys>/*.pem            all others; may be on another machine
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from model_formats.core.files import atomic_write
from model_formats.core.types import digest_of, hex_of
from sync.core.types import Reason
from sync.trust.errors import MetadataRefused
from sync.trust.keys import load_signer, role_signer, save_signer

__all__ = ["ONLINE", "RepositoryFiles", "read_metadata"]

R = TypeVar("R", Root, Targets, Snapshot, Timestamp)

ONLINE = ("snapshot", "timestamp", "director")
"""Whose keys a running hub holds."""


def read_metadata(data: bytes) -> Metadata[Any]:
    """Parse TUF metadata; no signature is checked. Raises MetadataRefused."""
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except RepositoryError as e:
        raise MetadataRefused(Reason.METADATA_INVALID, f"not TUF metadata: {e}") from e
    return metadata


class RepositoryFiles:
    """The files of one repository. It decides nothing."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self.folder, self.keys, self.online = folder, keys, folder / "online"

    # ---- metadata

    def exists(self, role: str) -> bool:
        """Whether metadata of a role is published."""
        return self._path(role).exists()

    def data(self, role: str) -> bytes:
        """The published metadata of a role; the newest, for root."""
        return self._path(role).read_bytes()

    def load(self, role: str, kind: type[R]) -> Metadata[R]:
        """The same, parsed."""
        metadata: Metadata[R] = Metadata.from_bytes(self.data(role))
        return metadata

    def publish(self, role: str, metadata: Metadata[Any]) -> None:
        """Replace a role's metadata (root: add the next version)."""
        name = f"{metadata.signed.version}.root.json" if role == "root" else f"{role}.json"
        atomic_write(self.folder / "metadata" / name, metadata.to_bytes())

    def roots(self) -> list[Path]:
        """All versions of root, the first first."""
        return sorted((self.folder / "metadata").glob("*.root.json"), key=lambda p: int(p.name.partition(".")[0]))

    # ---- small targets

    def target(self, path: str) -> bytes:
        """The published bytes of a small target."""
        return self.kept(self.load("targets", Targets).signed.targets[path].hashes["sha256"])

    def kept(self, sha256: str) -> bytes:
        """A small target's bytes, published or waiting."""
        return (self.folder / "targets" / sha256).read_bytes()

    def keep(self, data: bytes) -> None:
        """Keep a target's bytes by their digest."""
        atomic_write(self.folder / "targets" / hex_of(digest_of(data)), data)

    # ---- proposals

    def proposal(self, role: str) -> bytes | None:
        """What waits for signatures."""
        path = self.folder / "pending" / f"{role}.json"
        return path.read_bytes() if path.exists() else None

    def proposals(self) -> dict[str, bytes]:
        """All of them, by role."""
        return {p.stem: p.read_bytes() for p in sorted((self.folder / "pending").glob("*.json"))}

    def propose(self, role: str, data: bytes) -> None:
        """Let metadata wait for signatures."""
        atomic_write(self.folder / "pending" / f"{role}.json", data)

    def settle(self, role: str) -> None:
        """It is published, or given up."""
        (self.folder / "pending" / f"{role}.json").unlink(missing_ok=True)

    # ---- keys

    def signers(self, keyids: Iterable[str]) -> Iterator[CryptoSigner]:
        """The private keys that are here, of those."""
        wanted = set(keyids)
        for folder in (self.online, self.keys):
            for path in sorted(folder.glob("*.pem")) if folder.exists() else []:
                signer = load_signer(path)
                if signer.public_key.keyid in wanted:
                    wanted.discard(signer.public_key.keyid)
                    yield signer

    def fresh_key(self, name: str) -> CryptoSigner:
        """A new key in its folder: `<name>.pem`, or `<name>.<key id>.pem` beside an older one."""
        signer = role_signer()
        folder = self.online if name in ONLINE else self.keys
        path = folder / f"{name}.pem"
        if path.exists():
            path = folder / f"{name}.{signer.public_key.keyid[:8]}.pem"
        save_signer(path, signer)
        return signer

    def _path(self, role: str) -> Path:
        if role == "root":
            return (self.roots() or [self.folder / "metadata" / "1.root.json"])[-1]
        return self.folder / "metadata" / f"{role}.json"

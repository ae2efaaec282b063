"""Where a hub keeps its things: names of the files and folders under its home, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["HubHome"]


@dataclass(frozen=True, slots=True)
class HubHome:
    """The folder of one hub. `keys/` may be moved to another machine; the running hub needs only the online ones in it."""

    root: Path

    @property
    def settings(self) -> Path:
        """`hub.toml`: what differs from the defaults."""
        return self.root / "hub.toml"

    @property
    def database(self) -> Path:
        """The SQLite file, unless `database_url` says otherwise."""
        return self.root / "hub.db"

    @property
    def lock(self) -> Path:
        """Held while `hub up` runs."""
        return self.root / "hub.app.lock"

    @property
    def keys(self) -> Path:
        """Private keys, each 0600. Online: snapshot, timestamp, director. All others may live elsewhere."""
        return self.root / "keys"

    @property
    def metadata(self) -> Path:
        """The TUF repository."""
        return self.root / "tuf"

    @property
    def ca(self) -> Path:
        """The device CA."""
        return self.root / "ca"

    @property
    def blobs(self) -> Path:
        """The registry's content-addressed files."""
        return self.root / "registry"

    @property
    def broker(self) -> Path:
        """Mosquitto's configuration, certificates and persistence."""
        return self.root / "broker"

    @property
    def builds(self) -> Path:
        """Model folders that `hub model build` made: `builds/<model>/<version>`."""
        return self.root / "builds"

    @property
    def token(self) -> Path:
        """The operator's bearer token for the command line on this machine, 0600."""
        return self.root / "operator.token"

    @property
    def address(self) -> Path:
        """Written by `hub up` once it listens: `{"url", "broker_host", "broker_port", "pid"}`; removed at a clean stop."""
        return self.root / "run" / "hub.json"

    @property
    def packages(self) -> Path:
        """OCI layout of what was packed on this machine."""
        return self.root / "packages"

    def build(self, model: str, version: int) -> Path:
        """The model folder of one version."""
        return self.builds / model / str(version)

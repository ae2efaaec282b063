"""The names of files and folders in the home of a spoke."""

from pathlib import Path

from msgspec import Struct

__all__ = ["SpokeHome"]


class SpokeHome(Struct, frozen=True):
    """The folder of one spoke. Agent and server share it; only the agent writes `slots.json` and the journal."""

    root: Path

    @property
    def settings(self) -> Path:
        """`spoke.toml`: what differs from the defaults."""
        return self.root / "spoke.toml"

    @property
    def identity(self) -> Path:
        """Device key, certificate, site key and addresses, each 0600."""
        return self.root / "identity"

    @property
    def trust(self) -> Path:
        """Trusted TUF metadata and the time floor."""
        return self.root / "trust"

    @property
    def mirror(self) -> Path:
        """TUF files as they last came over the bus, not yet believed."""
        return self.root / "mirror"

    @property
    def store(self) -> Path:
        """The OCI layout (`oci-layout`, `blobs/sha256/...`): the folder itself."""
        return self.root

    @property
    def slots(self) -> Path:
        """Which versions are served."""
        return self.root / "slots.json"

    @property
    def budget(self) -> Path:
        """How many bytes were fetched today."""
        return self.root / "budget.json"

    @property
    def journal(self) -> Path:
        """Updates, reports not yet acknowledged, history (SQLite)."""
        return self.root / "journal.db"

    @property
    def data(self) -> Path:
        """Local rows, encrypted (SQLite)."""
        return self.root / "data.db"

    @property
    def egress(self) -> Path:
        """Everything that left through the outbox, hash-chained (SQLite)."""
        return self.root / "egress.db"

    @property
    def adapters(self) -> Path:
        """Locally tuned heads. They never leave."""
        return self.root / "adapters"

    @property
    def run(self) -> Path:
        """Sockets, port files and locks of running processes."""
        return self.root / "run"

    @property
    def control_socket(self) -> Path:
        """The server's control socket for the agent, 0600."""
        return self.run / "control.sock"

    @property
    def server_socket(self) -> Path:
        """The server's Open Inference Protocol socket on this machine."""
        return self.run / "server.sock"

    @property
    def server_port(self) -> Path:
        """Written by the server once it listens on TCP."""
        return self.run / "server.port"

    @property
    def grpc_port(self) -> Path:
        """Written by the server once it listens for gRPC."""
        return self.run / "grpc.port"

    def worker_socket(self, number: int) -> Path:
        """The control socket of one of several server processes, 0600."""
        return self.run / f"worker-{number}.sock"

    def strangers(self, process: str) -> Path:
        """Whom that process tried to call and should not have (see `network_watch`); none as long as it did not."""
        return self.run / f"strangers-{process}.json"

    @property
    def agent_socket(self) -> Path:
        """The agent's local socket for the command line, 0600."""
        return self.run / "agent.sock"

    @property
    def agent_lock(self) -> Path:
        """Held while an agent, or `spoke sideload apply`, works on this home."""
        return self.run / "agent.lock"

"""Writes the folder that a relay's machine needs: Mosquitto's configuration, access list, keys and certificates."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from model_formats.core.files import atomic_write
from provisioning.brokers.access_list import render_acl
from provisioning.brokers.mosquitto import render_config
from provisioning.brokers.relay import Bridge, relay_user
from provisioning.identity.ca import DeviceCA
from sync.core.tls import TlsFiles
from sync.core.types import SpokeId

__all__ = ["RelayConfig", "write_region"]


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """One relay and its machine."""

    name: str
    hub: tuple[str, int]
    """Host and port of the hub's broker, as the relay sees it."""
    names: Sequence[str]
    """Host names under which the region's spokes reach the relay."""
    port: int
    place: str
    """Where the folder will lie on that machine."""


def write_region(
    out: Path, relay: RelayConfig, ca: DeviceCA, spokes: Sequence[tuple[SpokeId, str]], *, now: datetime
) -> list[Path]:
    """Write `out` for a relay of these spokes (with zones); returns its files.

    Called again it writes the access list anew, with fresh keys and certificates.
    """
    (out / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
    ca.issue_server(out / "tls", list(relay.names), now=now)
    ca.issue_client(out / "tls", relay_user(relay.name), now=now)
    there = Path(relay.place)
    link = _there(there, relay_user(relay.name))
    bridge = Bridge(relay.name, *relay.hub, link, tuple(spokes))
    server, crl = _there(there, "server"), there / "crl.pem"
    config = render_config(there, server, host="0.0.0.0", port=relay.port, crl=crl, bridge=bridge)  # noqa: S104
    lines = [line for line in config.splitlines() if not line.startswith(("user ", "# Written"))]
    head = [f"# Relay {relay.name}, written by `hub relay`. Start: mosquitto -c {shlex.quote(str(there / 'mosquitto.conf'))}"]
    atomic_write(out / "mosquitto.conf", "\n".join([*head, *lines, ""]).encode())
    atomic_write(out / "acl", render_acl(spokes, hub_users=()).encode(), mode=0o600)
    atomic_write(out / "crl.pem", ca.crl_path.read_bytes())
    return sorted(path for path in out.rglob("*") if path.is_file())


def _there(folder: Path, name: str) -> TlsFiles:
    return TlsFiles(folder / "tls/ca.crt", folder / f"tls/{name}.crt", folder / f"tls/{name}.key")

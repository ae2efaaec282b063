"""Mosquitto, configured and run by the hub. Signatures first; the body follows within the hour."""

from collections.abc import Iterable
from pathlib import Path

from sync.mqtt import TlsFiles
from sync.types import SpokeId

__all__ = ["Broker"]


class Broker:
    """One Mosquitto process in a folder of its own."""

    def __init__(self, folder: Path, tls: TlsFiles, *, host: str = "127.0.0.1", port: int = 0, crl: Path | None = None) -> None:
        """`tls`: the CA that clients are checked against, and the server's certificate and key. Port 0 picks a free one."""

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        raise NotImplementedError

    def start(self, spokes: Iterable[tuple[SpokeId, str]] = (), *, timeout: float = 10.0) -> None:
        """Write configuration and access list, start, wait until it answers. Raises BrokerMissing, BrokerFailed."""
        raise NotImplementedError

    def allow(self, spokes: Iterable[tuple[SpokeId, str]]) -> None:
        """Replace the access list by these spokes (with zones) and reload."""
        raise NotImplementedError

    def alive(self) -> bool:
        """Whether the process runs."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it; its persistence is saved."""
        raise NotImplementedError

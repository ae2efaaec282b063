"""The bus over MQTT 5 (paho): mutual TLS, reconnects by itself with jitter, nothing unbounded.

Signatures first; the body follows within the hour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sync.bus import Handler, Message, Subscription

__all__ = ["MqttBus", "TlsFiles"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one end of a mutual TLS connection."""

    ca: Path
    certificate: Path
    key: Path


class MqttBus:
    """A connection to a broker. The broker takes the client id from the certificate: one connection per certificate."""

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        tls: TlsFiles | None = None,
        *,
        session_s: int = 3600,
        clean_start: bool = True,
    ) -> None: ...

    @property
    def connected(self) -> bool:
        """Whether messages flow right now."""
        raise NotImplementedError

    def connect(self, *, will: Message | None = None, timeout: float | None = 10.0) -> None:
        """See `sync.bus.Bus`."""
        raise NotImplementedError

    def publish(self, message: Message) -> None:
        """See `sync.bus.Bus`."""
        raise NotImplementedError

    def flush(self, timeout: float) -> bool:
        """See `sync.bus.Bus`."""
        raise NotImplementedError

    def subscribe(self, pattern: str, handler: Handler, *, qos: int = 1) -> Subscription:
        """See `sync.bus.Bus`."""
        raise NotImplementedError

    def on_connect(self, callback: Callable[[], None]) -> None:
        """See `sync.bus.Bus`."""
        raise NotImplementedError

    def close(self) -> None:
        """See `sync.bus.Bus`."""
        raise NotImplementedError

"""Who this spoke is: key and certificate on disk, and what the hub told it when it was enrolled."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer

from sync.mqtt import TlsFiles
from sync.types import Regime, SpokeId

__all__ = ["Identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """The folder `home/identity`: `identity.json`, `device.key` (0600), `device.crt`, `ca.crt`, `root.json`."""

    folder: Path
    spoke: SpokeId
    zone: str
    regime: Regime
    hub_url: str
    broker_host: str
    broker_port: int

    @classmethod
    def load(cls, home: Path) -> "Identity":
        """Read it; raises NotEnrolled."""
        raise NotImplementedError

    @property
    def tls(self) -> TlsFiles:
        """For `MqttBus` and httpx."""
        raise NotImplementedError

    @property
    def tuf_root(self) -> bytes:
        """The root metadata this spoke was enrolled with."""
        raise NotImplementedError

    @property
    def public_key(self) -> bytes:
        """The device's public key, PEM."""
        raise NotImplementedError

    def signer(self) -> Signer:
        """Signs reports and tokens with the device key."""
        raise NotImplementedError

    def renewal_due(self, now: datetime) -> bool:
        """Whether two thirds of the certificate's life are over."""
        raise NotImplementedError

"""The device CA. Signatures first; the body follows within the hour."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sync.types import SpokeId

__all__ = ["DeviceCA"]


class DeviceCA:
    """An EC P-256 authority in a folder: `ca.crt`, `ca.key` (0600), `revoked.json`."""

    @classmethod
    def create(cls, folder: Path, *, name: str = "Spokeshave device CA", now: datetime) -> "DeviceCA":
        """Make a new authority; refuses to overwrite one."""
        raise NotImplementedError

    @classmethod
    def open(cls, folder: Path) -> "DeviceCA":
        """The authority in a folder."""
        raise NotImplementedError

    @property
    def certificate(self) -> bytes:
        """The CA's certificate, PEM."""
        raise NotImplementedError

    @property
    def pin(self) -> str:
        """Base32 fingerprint of the CA's public key, as enrolment codes carry it."""
        raise NotImplementedError

    def sign_csr(self, csr: bytes, spoke: SpokeId, *, now: datetime, life: timedelta = timedelta(days=90)) -> bytes:
        """A client certificate (PEM) for a spoke; the name comes from `spoke`, only the key from the request."""
        raise NotImplementedError

    def issue_server(self, folder: Path, names: Sequence[str], *, now: datetime, life: timedelta = timedelta(days=398)) -> None:
        """Key and certificate for servers (`server.key`, `server.crt`) under these DNS names and IP addresses."""
        raise NotImplementedError

    def issue_client(self, folder: Path, name: str = "hub", *, now: datetime, life: timedelta = timedelta(days=398)) -> None:
        """Key and certificate of a hub worker at the broker (`<name>.key`, `<name>.crt`)."""
        raise NotImplementedError

    def revoke(self, certificate: bytes, *, now: datetime) -> None:
        """Put a certificate on the revocation list."""
        raise NotImplementedError

    def crl(self, *, now: datetime) -> bytes:
        """The revocation list, PEM."""
        raise NotImplementedError

"""Short-lived bearer tokens that a spoke signs with its device key, for HTTPS. Signatures first; the body follows."""

from collections.abc import Callable
from datetime import datetime

from provisioning.identity import Identity
from sync.types import SpokeId

__all__ = ["mint_token", "verify_token"]


def mint_token(identity: Identity, *, now: datetime, life_s: int = 300) -> str:
    """A token for `Authorization: Bearer`."""
    raise NotImplementedError


def verify_token(token: str, certificate_of: Callable[[SpokeId], bytes | None], *, now: datetime) -> SpokeId:
    """Whose token this is. `certificate_of` gives the spoke's current certificate (PEM), None when unknown or revoked.

    Raises TokenRefused.
    """
    raise NotImplementedError

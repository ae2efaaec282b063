"""The site key, and what is sealed with it.

AES-256-GCM with a random 96-bit nonce a record; the record's public columns are bound in as associated data, so that nobody can
move a batch to another model or time. From one secret three keys are derived (HKDF): for rows, for labels, for request ids.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from model_formats.core.file_lock import FileLock
from model_formats.core.files import atomic_write, fsync_dir
from spoke_agent.data.errors import DataKeyLost, SiteKeyInvalid, StoreDamaged

__all__ = ["SITE_KEY", "SiteKey", "load_site_key", "site_key"]

SITE_KEY = Path("identity") / "site.key"
_NONCE = 12


class SiteKey(Struct, frozen=True):
    """32 secret bytes; never printed, never sent."""

    secret: bytes

    def __repr__(self) -> str:
        return "SiteKey(...)"

    def seal(self, purpose: str, data: bytes, bound: bytes) -> bytes:
        """Encrypt for a purpose (`rows`, `labels`), bound to public bytes."""
        # Random, not counted: agent and server write at once, and a restored backup would repeat a counter.
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(self._derive(purpose)).encrypt(nonce, data, bound)

    def unseal(self, purpose: str, data: bytes, bound: bytes) -> bytes:
        """Decrypt; raises StoreDamaged when data, bound bytes or key differ."""
        try:
            return AESGCM(self._derive(purpose)).decrypt(data[:_NONCE], data[_NONCE:], bound)
        except (InvalidTag, ValueError) as e:
            raise StoreDamaged(f"a sealed record of {purpose} does not open: it was changed, or belongs to another key") from e

    def handle(self, text: str) -> bytes:
        """A request id as 16 bytes that only this site can link back (HMAC-SHA256)."""
        # Keyed: request ids can be guessed, and a plain hash would tell whether one was here.
        return hmac.digest(self._derive("requests"), text.encode(), "sha256")[:16]

    @property
    def fingerprint(self) -> str:
        """Tells whether a store belongs to this key."""
        return hashlib.sha256(b"spokeshave site key" + self._derive("fingerprint")).hexdigest()[:32]

    def _derive(self, purpose: str) -> bytes:
        return _derived(self.secret, purpose)


@lru_cache(maxsize=32)
def _derived(secret: bytes, purpose: str) -> bytes:
    # One key for each purpose, so that a record of one kind cannot be passed off as another.
    return HKDF(SHA256(), 32, None, f"spokeshave/{purpose}".encode()).derive(secret)


def _create_once(path: Path, secret: bytes) -> None:
    """Agent and server may both come first: whoever links the name wins, and both read that one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    atomic_write(beside, secret, mode=0o600)
    try:
        with contextlib.suppress(FileExistsError):
            # A link fails if the name exists, where a rename would replace a key that already sealed rows.
            path.hardlink_to(beside)
    finally:
        beside.unlink()
    fsync_dir(path.parent)


def site_key(home: Path, source: str, *, create: bool) -> SiteKey:
    """The key from where the setting `site_key` says: `file`, `credential:NAME` (systemd) or `pkcs11:...` (RFC 7512).

    `create`: make it when it is not there (never a credential's). Raises DataKeyLost, SiteKeyUnavailable, SiteKeyInvalid.
    """
    if source == "file":
        return load_site_key(home, create=create)
    from spoke_agent.data.token import credential, parse_address, token_secret

    if source.startswith("credential:"):
        return _sized(credential(source.removeprefix("credential:")))
    if source.startswith("pkcs11:"):
        (home / "run").mkdir(parents=True, exist_ok=True)
        with FileLock(home / "run" / "site-key.lock"):  # agent and server may both come first: one makes the key
            return SiteKey(token_secret(home, parse_address(source), create=create))
    raise SiteKeyInvalid(f"site_key is {source[:40]!r}")


def load_site_key(home: Path, *, create: bool = True) -> SiteKey:
    """Read `identity/site.key` (32 bytes, mode 0600), or make it at first use. Raises DataKeyLost on a file of wrong length."""
    path = home / SITE_KEY
    if not path.exists():
        if not create:
            raise DataKeyLost(f"{path} is missing")
        _create_once(path, os.urandom(32))
    return _sized(path)


def _sized(path: Path) -> SiteKey:
    secret = path.read_bytes()
    if len(secret) != 32:
        raise DataKeyLost(f"{path} holds {len(secret)} bytes, not 32")
    return SiteKey(secret)

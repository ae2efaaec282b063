"""The site key from a PKCS#11 token (smart card, HSM, TPM): an RFC 7512 address, and the HMAC that makes the secret.

The token holds a secret that cannot be exported; the site's secret is HMAC-SHA256 of a fixed text under it. Without the
token the stored rows are unreadable, and destroying its key destroys them all at once. While a process runs it holds the derived
secret in memory, as it does with a key file.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from model_formats.core.files import atomic_write
from spoke_agent.data.errors import DataKeyLost, SiteKeyInvalid, SiteKeyUnavailable

__all__ = ["TokenAddress", "credential", "parse_address", "token_secret"]

_TEXT = b"spokeshave site key 1"
_PATH = ("token", "serial", "object", "id")
_QUERY = ("module-path", "pin-source")


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """What of a PKCS#11 URI we use. `pin_source` is a file, or the name of a systemd credential."""

    token: str | None
    serial: bytes | None
    object: str | None
    id: bytes | None
    module: str
    pin_source: str


def parse_address(text: str) -> TokenAddress:
    """`pkcs11:token=T;object=K?module-path=/lib/x.so&pin-source=file:/etc/pin`. Raises SiteKeyInvalid that names the part."""
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    found: dict[str, str] = {}
    for allowed, parts in ((_PATH, path.split(";")), (_QUERY, query.split("&"))):
        for part in filter(None, parts):
            name, equals, value = part.partition("=")
            if name == "pin-value":
                raise SiteKeyInvalid("pin-value in site_key: a PIN does not belong into a settings file; name a pin-source")
            if name not in allowed or not equals or name in found:
                raise SiteKeyInvalid(f"{name!r} in site_key: not one of {', '.join(allowed)}, or there twice")
            found[name] = value
    for needed in ("module-path", "pin-source"):
        if needed not in found:
            raise SiteKeyInvalid(f"site_key: the address has no {needed}")
    if not {"token", "serial"} & set(found) or not {"object", "id"} & set(found):
        raise SiteKeyInvalid("site_key: name the token (token or serial) and the key (object or id)")
    raw = {name: unquote(value, encoding="latin-1").encode("latin-1") for name, value in found.items()}
    plain = {name: unquote(value) for name, value in found.items()}
    return TokenAddress(
        plain.get("token"), raw.get("serial"), plain.get("object"), raw.get("id"), plain["module-path"], plain["pin-source"]
    )


def credential(name: str) -> Path:
    """The file of a systemd credential (`LoadCredential=`). Raises SiteKeyUnavailable outside of such a service."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder is None or "/" in name or not (Path(folder) / name).is_file():
        raise SiteKeyUnavailable(
            f"credential {name!r} is not given to this process",
            hint="Run it from the service, or by `systemd-run -P -p LoadCredential=NAME:PATH`.",
        )
    return Path(folder) / name


def token_secret(home: Path, address: TokenAddress, *, create: bool) -> bytes:
    """32 bytes. With `create`, the key is made in the token when it is not there.

    A refused PIN is not tried again until its file changes: tokens lock themselves after a few wrong ones.
    Raises SiteKeyUnavailable (no library, token or right PIN), DataKeyLost (the key is gone).
    """
    try:
        import pkcs11
    except ImportError as e:
        raise SiteKeyUnavailable(
            "python-pkcs11 is not installed", hint="pip install 'spokeshave[pkcs11]', or use another site_key."
        ) from e
    from pkcs11.exceptions import NoSuchToken, PinIncorrect, PinInvalid, PinLenRange, PinLocked, PKCS11Error

    source, refused = _pin_file(address.pin_source), home / "run" / "pin-refused"
    try:
        pin, stamp = source.read_text().strip(), f"{source} {source.stat().st_mtime_ns}"
    except (OSError, UnicodeDecodeError) as e:
        raise SiteKeyUnavailable(f"the PIN file {source} cannot be read: {e}") from e
    if refused.exists() and refused.read_text() == stamp:
        raise SiteKeyUnavailable(f"the token refused the PIN in {source}; it is not tried again until that file changes")
    try:
        with _token(pkcs11.lib(address.module), address).open(rw=create, user_pin=pin) as session:
            secret: bytes = _key(session, address, create=create).sign(_TEXT, mechanism=pkcs11.Mechanism.SHA256_HMAC)
    except (PinIncorrect, PinInvalid, PinLenRange, PinLocked) as e:
        atomic_write(refused, stamp.encode(), mode=0o600)
        raise SiteKeyUnavailable(f"the token refused the PIN in {source} ({type(e).__name__})") from e
    except NoSuchToken as e:
        raise SiteKeyUnavailable(f"no token {address.token or address.serial!r} is there") from e
    except (PKCS11Error, RuntimeError, OSError) as e:
        raise SiteKeyUnavailable(f"{address.module}: {type(e).__name__} {e}".rstrip()) from e
    return secret


def _pin_file(source: str) -> Path:
    if source.startswith("credential:"):
        return credential(source.removeprefix("credential:"))
    return Path(source.removeprefix("file://").removeprefix("file:"))


def _token(library: Any, address: TokenAddress) -> Any:
    """The token; one that was plugged in since the library was loaded is looked for once more."""
    from pkcs11.exceptions import NoSuchToken

    wanted = {"token_label": address.token, "token_serial": address.serial}
    try:
        return library.get_token(**{k: v for k, v in wanted.items() if v is not None})
    except NoSuchToken:
        library.reinitialize()
        return library.get_token(**{k: v for k, v in wanted.items() if v is not None})


def _key(session: Any, address: TokenAddress, *, create: bool) -> Any:
    from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
    from pkcs11.exceptions import MultipleObjectsReturned, NoSuchKey

    name = address.object or f"id {address.id.hex()}" if address.id else address.object
    try:
        wanted = {"label": address.object, "id": address.id}
        return session.get_key(object_class=ObjectClass.SECRET_KEY, **{k: v for k, v in wanted.items() if v is not None})
    except MultipleObjectsReturned as e:
        raise SiteKeyInvalid(f"site_key: several keys are called {name}; add their id") from e
    except NoSuchKey as e:
        if not create:
            raise DataKeyLost(f"the token has no key {name}") from e
    return session.generate_key(
        KeyType.GENERIC_SECRET,
        256,
        label=address.object,
        id=address.id,
        store=True,
        capabilities=MechanismFlag.SIGN,
        template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    )

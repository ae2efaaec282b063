"""Another OCI registry as the keeper of the hub's blobs: all that is pushed to the hub goes there, and comes back on demand.

    origins/<hex>        what is kept there: repository, size, media type (nothing for a plain blob)
    blobs/sha256/<hex>   the cache: bytes that were checked against their digest; the least recently used go first
    partial/<hex>        on its way here; a broken fetch goes on from there

The hub's own folder stays the record of what it pushed (store.py), so that nothing which others keep at that registry can be
served, listed, or deleted through the hub. At the registry the hub writes only under its prefix, and deletes only manifests that
it pushed; blobs there are for the registry's own garbage collection. What the hub's folder held before stays where it is.
"""

import contextlib
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import httpx

from hub.config.settings import HubSettings, SettingsInvalid
from hub.registry.auth import RegistryAuth
from hub.registry.blob_backend import FolderContents, checked_hex
from hub.registry.errors import RegistryRefused, Unknown
from hub.registry.remote_client import CHUNK_BYTES, RegistryDown, RemoteRepository
from hub.registry.store import RegistryStore
from model_formats.core.errors import HubError
from model_formats.core.files import atomic_write, settle
from model_formats.package.oci import OCTETS, Descriptor

__all__ = ["ExternalContents", "ExternalRegistry", "ExternalRegistryRefused", "open_registry"]

_PAGE_BYTES = 1 << 20
"""A blob up to this size counts as a page (index, manifest, package.json): it leaves the cache last."""
_IN_USE_S = 60.0
"""A file that was wanted so lately may be open: it stays, even where the cache is full."""
_FETCHES = 4


class ExternalRegistryRefused(HubError):
    """The registry that keeps the hub's blobs turned the hub away."""

    code = "external_registry_refused"
    http = 502
    hint = "Check registry_user, its password and its rights under registry_prefix; `hub doctor` tries them."


@dataclass(frozen=True, slots=True)
class ExternalRegistry:
    """The registry that a hub is told to use."""

    url: str
    prefix: str
    client: httpx.Client
    chunk: int = CHUNK_BYTES

    @classmethod
    def of(cls, settings: HubSettings) -> Self:
        """From `registry_*`. Raises SettingsInvalid for files that cannot be read, and a password that would go in the clear."""
        url = httpx.URL(settings.registry_url)
        if url.scheme not in ("https", "http") or not url.host:
            raise SettingsInvalid(f"registry_url: {settings.registry_url!r} is no http or https address")
        password = _password(settings)
        # A test registry on this machine may do without TLS; anything else would show the password to the network.
        if password and url.scheme == "http" and url.host not in ("127.0.0.1", "localhost", "::1"):
            raise SettingsInvalid("registry_url: a password is sent over https only", hint="Write https:// in registry_url.")
        auth = RegistryAuth(settings.registry_user, password, host=url.netloc.decode()) if settings.registry_user else None
        client = httpx.Client(auth=auth, verify=_trusted(settings), timeout=30.0, trust_env=False)
        return cls(settings.registry_url, settings.registry_prefix, client)

    def repository(self, name: str) -> RemoteRepository:
        """Where a model's repository lies there."""
        whole = f"{self.prefix}/{name}" if self.prefix else name
        return RemoteRepository(self.client, self.url, whole, chunk=self.chunk)

    def check(self) -> str:
        """Ask whether it is there and lets us in; returns what was found. Raises RegistryDown, ExternalRegistryRefused."""
        try:
            answer = self.client.get(f"{self.url.rstrip('/')}/v2/")
        except httpx.HTTPError as e:
            raise RegistryDown(f"{self.url} does not answer: {e or type(e).__name__}") from e
        except RegistryRefused as e:
            raise ExternalRegistryRefused(e.message) from e
        if answer.status_code in (401, 403):
            raise ExternalRegistryRefused(f"{self.url} answers {answer.status_code} to this name and password")
        if answer.status_code != 200:
            raise RegistryDown(f"{self.url} answers {answer.status_code} at /v2/: no OCI registry, or one that is not well")
        return f"{self.url} answers; the hub's repositories are under {self.prefix + '/' if self.prefix else 'no prefix'}"


@dataclass(frozen=True, slots=True)
class _Origin:
    """What is kept at the registry. `media_type` empty: a plain blob."""

    repository: str
    size: int
    media_type: str = ""


class ExternalContents:
    """Contents at another registry. Threads share it, and so do the processes of one hub (through the folder)."""

    def __init__(self, folder: Path, registry: ExternalRegistry, *, cache_bytes: int) -> None:
        self._registry, self._cache_bytes = registry, cache_bytes
        self._near = FolderContents(folder / "blobs" / "sha256")
        self.folder = self._near.folder
        self._origins, self._partial = folder / "origins", folder / "partial"
        for place in (self._origins, self._partial):
            place.mkdir(parents=True, exist_ok=True)
        # One fetch per blob: a ring that asks for a blob at once costs that registry one download.
        self._fetches: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="registry-fetch")

    # ---- reading

    def has(self, digest: str) -> bool:
        """See Contents."""
        return self._near.has(digest) or self._origin(digest) is not None

    def size(self, digest: str) -> int:
        """See Contents."""
        origin = self._origin(digest)
        return origin.size if origin else self._near.size(digest)

    def ready(self, digest: str, wait_s: float = 0.0) -> bool:
        """See Contents."""
        if not self._near.has(digest) and (fetch := self._fetch(digest)) is not None:
            done, _ = wait([fetch], wait_s)
            for one in done:
                one.result()
        return self._near.has(digest)

    def path(self, digest: str) -> Path:
        """See Contents. Raises RegistryDown, ExternalRegistryRefused, PackageTampered."""
        file = self._near.path(digest)
        with contextlib.suppress(FileNotFoundError):
            # Marks it as used: the cache drops what was not used for longest.
            os.utime(file)
            return file
        if (fetch := self._fetch(digest)) is not None:
            fetch.result()
        return file

    # ---- writing

    def confirm(self, repository: str, digest: str) -> bool:
        """See Contents. What the registry has lost, and what only this folder holds from before, must be pushed again."""
        with _as_external_refusal():
            return self._origin(digest) is not None and self._registry.repository(repository).holds(digest)

    def take(self, repository: str, digest: str, file: Path) -> None:
        """See Contents."""
        blob = Descriptor(digest, file.stat().st_size, OCTETS)
        with _as_external_refusal():
            self._registry.repository(repository).put_blob(file, blob)
        self._remember(digest, _Origin(repository, blob.size))
        # Remembered first and moved second: a crash in between costs a fetch, not a blob.
        settle(file, self._near.path(digest))
        self._trim()

    def link(self, repository: str, digest: str) -> None:
        """See Contents."""
        blob, origin = Descriptor(digest, self.size(digest), OCTETS), self._origin(digest)
        if origin is not None and origin.repository != repository:
            source = self._registry.repository(origin.repository).name
            with _as_external_refusal():
                self._registry.repository(repository).put_blob(self.path(digest), blob, mount_from=source)
        # Asked again under the lock, since another thread may have finished the fetch meanwhile.
        elif self._near.has(digest):
            os.utime(self._near.path(digest))

    def take_manifest(self, repository: str, reference: str, media_type: str, digest: str, data: bytes) -> None:
        """See Contents."""
        with _as_external_refusal():
            self._registry.repository(repository).put_manifest(data, media_type, reference)
        self._remember(digest, _Origin(repository, len(data), media_type))
        atomic_write(self._near.path(digest), data)
        self._trim()

    def drop_manifest(self, repository: str, digest: str, subject: str | None) -> None:
        """See Contents. A registry that deletes nothing keeps it; the hub does not serve it any more either way."""
        if self._origin(digest) is not None:
            with _as_external_refusal():
                self._registry.repository(repository).delete_manifest(digest, subject)

    def forget(self, digest: str) -> None:
        """See Contents."""
        (self._origins / checked_hex(digest)).unlink(missing_ok=True)
        self._near.forget(digest)

    def known(self) -> dict[str, float]:
        """See Contents."""
        kept = {f"sha256:{file.name}": file.stat().st_mtime for file in self._origins.iterdir() if len(file.name) == 64}
        return kept | self._near.known()

    def is_copy(self, file: Path) -> bool:
        """See Contents."""
        return file.parent == self._partial or (file.parent == self.folder and (self._origins / file.name).exists())

    def close(self) -> None:
        """See Contents. Fetches under way come to an end, or go on from there next time."""
        self._pool.shutdown(cancel_futures=True)
        self._registry.client.close()

    # ---- inside

    def _origin(self, digest: str) -> _Origin | None:
        try:
            return _Origin(**json.loads((self._origins / checked_hex(digest)).read_bytes()))
        except FileNotFoundError:
            return None

    def _remember(self, digest: str, origin: _Origin) -> None:
        atomic_write(self._origins / checked_hex(digest), json.dumps(asdict(origin)).encode())

    def _fetch(self, digest: str) -> Future[None] | None:
        """The one fetch of a blob that all wait for; None when it came meanwhile. Raises Unknown."""
        with self._lock:
            if self._near.has(digest):
                return None
            if digest not in self._fetches:
                origin = self._origin(digest)
                if origin is None:
                    raise Unknown(f"{digest}: not here", oci="BLOB_UNKNOWN")
                self._fetches[digest] = self._pool.submit(self._bring, digest, origin)
            return self._fetches[digest]

    def _bring(self, digest: str, origin: _Origin) -> None:
        try:
            remote, file = self._registry.repository(origin.repository), self._near.path(digest)
            with _as_external_refusal():
                if origin.media_type:
                    atomic_write(file, remote.get_manifest(digest))
                else:
                    part = self._partial / file.name
                    remote.download(Descriptor(digest, origin.size, OCTETS), part)
                    settle(part, file)
            self._trim()
        finally:
            with self._lock:
                self._fetches.pop(digest, None)

    def _trim(self) -> None:
        """Make room: large files before pages, those long unused first, and only what can be fetched again."""
        files = [(file, file.stat()) for file in self.folder.iterdir() if (self._origins / file.name).exists()]
        over = sum(held.st_size for _, held in files) - self._cache_bytes
        for file, held in sorted(files, key=lambda f: (f[1].st_size <= _PAGE_BYTES, f[1].st_mtime)):
            if over <= 0:
                return
            if held.st_mtime < time.time() - _IN_USE_S:
                file.unlink(missing_ok=True)
                over -= held.st_size


def open_registry(folder: Path, settings: HubSettings) -> RegistryStore:
    """The hub's registry as its settings want it: all in `folder`, or the bytes at another registry. Raises SettingsInvalid."""
    if not settings.registry_url:
        return RegistryStore(folder)
    registry = ExternalRegistry.of(settings)
    return RegistryStore(folder, ExternalContents(folder, registry, cache_bytes=settings.registry_cache_bytes))


@contextlib.contextmanager
def _as_external_refusal() -> Iterator[None]:
    """A refusal by that registry is not one by the hub: whoever asks the hub can only wait for its operator."""
    try:
        yield
    except RegistryRefused as e:
        raise ExternalRegistryRefused(f"the external registry: {e.message}") from e


def _password(settings: HubSettings) -> str:
    if not settings.registry_password_file:
        return settings.registry_password.get_secret_value()
    try:
        return Path(settings.registry_password_file).read_text().strip()
    except OSError as e:
        raise SettingsInvalid(f"registry_password_file: {e}") from e


def _trusted(settings: HubSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.registry_ca_file or None)
    except (OSError, ssl.SSLError) as e:
        raise SettingsInvalid(f"registry_ca_file: {settings.registry_ca_file}: {e}") from e

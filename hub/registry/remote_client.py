"""One repository at some registry, as a client sees it: ours, distribution, Harbor, zot, or a cloud's (OCI distribution 1.1).

Large blobs go up in chunks (POST, PATCH..., PUT) and come down by Range; both resume. Memory does not
grow with the blob. What is downloaded counts only when it hashes to its digest.

A registry that does not say `OCI-Subject` to a manifest with a subject keeps no list of referrers (distribution 2.8 is such a
one): then the tag `sha256-<hex>` of the subject lists them. Source: specification, "Pushing Manifests with Subject".
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
from msgspec import convert

from hub.registry.errors import NotAuthorized, RegistryRefused
from model_formats.core.errors import HubError
from model_formats.core.types import digest_of, digest_of_file
from model_formats.package.image_layout import PackageTampered
from model_formats.package.oci import INDEX, MANIFEST, MAX_JSON, Descriptor, OciDescriptor, canonical, parse_index, parse_manifest
from sync.core.retry import retrying

__all__ = ["CHUNK_BYTES", "RegistryDown", "RemoteRepository"]

CHUNK_BYTES = 16 << 20
"""Bytes of a blob that go up in one request; a smaller blob goes whole."""
_PIECE_BYTES = 1 << 20
_TRIES = 4
_SLOW = httpx.Timeout(30.0, read=900.0)
"""Seconds for the request that ends an upload: a registry hashes or copies the whole blob before it answers."""
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')


class RegistryDown(HubError):
    """The registry cannot be reached, or failed."""

    code = "registry_down"
    hint = "Is the address right, and is the registry up? A push can be repeated; what is there already is not sent again."


class RemoteRepository:
    """One repository. All calls raise RegistryDown, NotAuthorized (401, 403) or RegistryRefused."""

    def __init__(self, client: httpx.Client, url: str, repository: str, *, chunk: int = CHUNK_BYTES) -> None:
        self.name, self._client, self._chunk = repository, client, chunk
        self._base = f"{url.rstrip('/')}/v2/{repository}"

    # ---- blobs

    def holds(self, digest: str) -> bool:
        """Whether the repository serves a blob."""
        return self._ask("HEAD", f"/blobs/{digest}", expect=(200, 404)).status_code == 200

    def put_blob(self, file: Path, blob: Descriptor, *, mount_from: str | None = None) -> None:
        """Send a blob that is not there yet; from another repository of the registry, if it can be had there."""
        # Versions share most files; what is there is not sent again.
        if self.holds(blob.digest):
            return
        query = {"mount": blob.digest, "from": mount_from} if mount_from else {}
        started = self._ask("POST", "/blobs/uploads/", params=query, expect=(201, 202))
        # Mounted: the registry had the blob in another repository.
        if started.status_code == 201:
            return
        upload = _Upload(_location(started), file, blob)
        if blob.size > self._chunk:
            self._send_chunks(upload)
        self._finish(upload)

    def download(self, blob: Descriptor, part: Path) -> None:
        """Bring a blob into the file `part`, going on from what is there; it is complete and checked when this returns.

        Raises PackageTampered (and removes the file) when the bytes are not `blob`.
        """
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        retrying(on=(RegistryDown,), tries=_TRIES)(self._continue)(blob, part)
        if part.stat().st_size != blob.size or digest_of_file(part) != blob.digest:
            part.unlink()
            raise PackageTampered(f"{blob.path or blob.digest}: {self._base} gives other bytes for {blob.digest}")

    # ---- manifests

    def put_manifest(self, data: bytes, media_type: str, reference: str) -> None:
        """Put a manifest or index under a tag or its digest; a referrer can be found from its subject afterwards."""
        answer = self._ask("PUT", f"/manifests/{reference}", content=data, headers={"Content-Type": media_type}, expect=(201,))
        subject = _subject(data, media_type)
        # The specification's sign that the registry lists referrers itself; without it the client keeps the list.
        if subject and "OCI-Subject" not in answer.headers:
            self._list_referrer(subject, _entry(data, media_type))

    def get_manifest(self, reference: str) -> bytes:
        """A manifest or index by tag or digest. Raises PackageTampered when its bytes are not the digest that was asked for."""
        data = self._read("GET", f"/manifests/{reference}", headers={"Accept": f"{INDEX}, {MANIFEST}"})
        if reference.startswith("sha256:") and digest_of(data) != reference:
            raise PackageTampered(f"{self._base}: gives other bytes for the manifest {reference}")
        return data

    def referrers(self, digest: str) -> list[Descriptor]:
        """Manifests that refer to a digest: what the registry says, or, where it keeps none, what the fallback tag lists."""
        listed = self._api_referrers(digest)
        return [convert(entry, OciDescriptor).plain for entry in (self._fallback(digest) if listed is None else listed)]

    def delete_manifest(self, digest: str, subject: str | None = None) -> bool:
        """Delete a manifest, and its line in the fallback tag of its subject. False where the registry deletes nothing."""
        if subject and self._api_referrers(subject) is None:
            self._unlist_referrer(subject, digest)
        return self._ask("DELETE", f"/manifests/{digest}", expect=(202, 404, 405)).status_code != 405

    # ---- uploads

    def _send_chunks(self, upload: "_Upload") -> None:
        send = retrying(on=(RegistryDown,), tries=_TRIES)(self._send_chunk)
        while upload.offset < upload.blob.size:
            send(upload)

    def _send_chunk(self, upload: "_Upload") -> None:
        """One chunk; when the last one broke, from where the registry stands."""
        if upload.broken:
            self._stand(upload)
        size = min(self._chunk, upload.blob.size - upload.offset)
        headers = {"Content-Range": f"{upload.offset}-{upload.offset + size - 1}", **_octets(size)}
        # Until the answer is here nobody knows how much has arrived; the next try asks.
        upload.broken = True
        answer = self._ask("PATCH", upload.where, content=upload.slice(size), headers=headers, expect=(202,))
        upload.broken, upload.where = False, _location(answer)
        upload.offset = _stands_at(answer, upload.offset + size)

    def _stand(self, upload: "_Upload") -> None:
        """Ask how far an upload is; a registry that has lost it (distribution 2.8 does, after half a chunk) starts anew."""
        answer = self._ask("GET", upload.where, expect=(204, 400, 404, 416))
        if answer.status_code == 204:
            upload.offset, upload.where = _stands_at(answer, 0), _location(answer, upload.where)
        elif upload.lost == _TRIES:
            raise RegistryRefused(f"{self._base}: the registry lost the upload of {upload.blob.digest} {_TRIES} times")
        else:
            upload.offset, upload.where = 0, _location(self._ask("POST", "/blobs/uploads/", expect=(202,)))
            upload.lost += 1
        upload.broken = False

    def _finish(self, upload: "_Upload") -> None:
        rest = upload.blob.size - upload.offset
        where = upload.where.copy_merge_params({"digest": upload.blob.digest})
        content = upload.slice(rest) if rest else b""
        self._ask("PUT", where, content=content, headers=_octets(rest), timeout=_SLOW, expect=(201,))

    # ---- downloads

    def _continue(self, blob: Descriptor, part: Path) -> None:
        have = part.stat().st_size
        if have >= blob.size:
            return
        # A compressed answer could not be continued at a byte, nor bounded by the blob's size.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with self._client.stream(
                "GET", f"{self._base}/blobs/{blob.digest}", headers=headers, follow_redirects=True
            ) as answer:
                self._expect(answer, (200, 206))
                # A registry without ranges answers 200 with the whole: begin the file again.
                with part.open("ab" if answer.status_code == 206 else "wb") as out:
                    for piece in answer.iter_bytes(_PIECE_BYTES):
                        # Stopped before it is written: a registry must not be able to fill this disk.
                        if out.tell() + len(piece) > blob.size:
                            raise PackageTampered(f"{blob.path or blob.digest}: {self._base} gives more than {blob.size} bytes")
                        out.write(piece)
        except httpx.HTTPError as e:
            raise RegistryDown(f"GET {self._base}/blobs/{blob.digest}: {e or type(e).__name__}") from e
        if part.stat().st_size < blob.size:
            raise RegistryDown(f"{self._base}/blobs/{blob.digest}: the answer ended early")

    # ---- referrers

    def _api_referrers(self, digest: str) -> list[dict[str, Any]] | None:
        """All pages of the referrers API; None where the registry has none."""
        found: list[dict[str, Any]] = []
        where: str | httpx.URL | None = f"/referrers/{digest}"
        while where is not None:
            answer = self._ask("GET", where, expect=(200, 400, 404, 405, 406))
            if answer.status_code != 200 or not answer.headers.get("Content-Type", "").startswith(INDEX):
                return None
            found += _manifests_of(answer.content)
            further = _NEXT.search(answer.headers.get("Link", ""))
            where = httpx.URL(urljoin(str(answer.url), further[1])) if further else None
        return found

    def _fallback(self, subject: str) -> list[dict[str, Any]]:
        try:
            return _manifests_of(self.get_manifest(_fallback_tag(subject)))
        except RegistryRefused as e:
            if e.http == 404:
                return []
            raise

    def _list_referrer(self, subject: str, entry: dict[str, Any]) -> None:
        listed = self._fallback(subject)
        if entry["digest"] not in {one["digest"] for one in listed}:
            self._write_fallback(subject, [*listed, entry])

    def _unlist_referrer(self, subject: str, digest: str) -> None:
        listed = self._fallback(subject)
        if digest in {one["digest"] for one in listed}:
            self._write_fallback(subject, [one for one in listed if one["digest"] != digest])

    def _write_fallback(self, subject: str, listed: list[dict[str, Any]]) -> None:
        page = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})
        self._ask("PUT", f"/manifests/{_fallback_tag(subject)}", content=page, headers={"Content-Type": INDEX}, expect=(201,))

    # ---- requests

    def _ask(self, method: str, where: str | httpx.URL, *, expect: tuple[int, ...], **kwargs: Any) -> httpx.Response:
        url = f"{self._base}{where}" if isinstance(where, str) else where
        try:
            answer = self._client.request(method, url, **kwargs)
        except httpx.HTTPError as e:
            raise RegistryDown(f"{method} {url}: {e or type(e).__name__}") from e
        self._expect(answer, expect)
        return answer

    def _read(self, method: str, where: str, **kwargs: Any) -> bytes:
        """A small answer, bounded."""
        url, data = f"{self._base}{where}", bytearray()
        try:
            with self._client.stream(method, url, follow_redirects=True, **kwargs) as answer:
                self._expect(answer, (200,))
                for piece in answer.iter_bytes(_PIECE_BYTES):
                    data += piece
                    if len(data) > MAX_JSON:
                        raise PackageTampered(f"{url}: more than the {MAX_JSON} bytes allowed")
        except httpx.HTTPError as e:
            raise RegistryDown(f"{method} {url}: {e or type(e).__name__}") from e
        return bytes(data)

    def _expect(self, answer: httpx.Response, expected: tuple[int, ...]) -> None:
        status = answer.status_code
        if status in expected:
            return
        answer.read()
        told = f"{answer.request.method} {answer.request.url}: {status} {_why(answer)}"
        if status in (401, 403):
            raise NotAuthorized(told)
        # Worth another try; every other refusal would come again.
        if status >= 500 or status == 429:
            raise RegistryDown(told)
        refused = RegistryRefused(told)
        vars(refused)["http"] = status
        raise refused


@dataclass(slots=True)
class _Upload:
    """A push in progress. `broken`: the last chunk did not come to an end. `lost`: how often it had to start anew."""

    where: httpx.URL
    file: Path
    blob: Descriptor
    offset: int = 0
    broken: bool = False
    lost: int = 0

    def slice(self, size: int) -> "_Slice":
        """The next `size` bytes."""
        return _Slice(self.file, self.offset, size)


@dataclass(frozen=True, slots=True)
class _Slice:
    """Part of a file as a request's body. It can be read again, which a second try after a login needs."""

    file: Path
    start: int
    size: int

    def __iter__(self) -> Iterator[bytes]:
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left and (piece := file.read(min(_PIECE_BYTES, left))):
                left -= len(piece)
                yield piece


def _octets(size: int) -> dict[str, str]:
    return {"Content-Length": str(size), "Content-Type": "application/octet-stream"}


def _location(answer: httpx.Response, default: httpx.URL | None = None) -> httpx.URL:
    where = answer.headers.get("Location")
    if where is None and default is not None:
        return default
    if where is None:
        raise RegistryDown(f"{answer.request.url}: the answer has no Location")
    return httpx.URL(urljoin(str(answer.url), where))


def _stands_at(answer: httpx.Response, default: int) -> int:
    """Bytes that the registry has. `0-0` is its word for none."""
    told = _RANGE.match(answer.headers.get("Range", ""))
    if told is None:
        return default
    return int(told[1]) + 1 if told[1] != "0" else 0


def _why(answer: httpx.Response) -> str:
    """What the registry says, short: the error document of the specification, a problem document, or text."""
    try:
        page = answer.json()
        first = page["errors"][0] if "errors" in page else page
        return str(first.get("message") or first.get("detail") or first.get("code"))[:300]
    except (ValueError, LookupError, TypeError, AttributeError):
        return answer.text[:300]


def _subject(data: bytes, media_type: str) -> str | None:
    parsed = parse_index(data) if media_type == INDEX else parse_manifest(data)
    return parsed.subject.digest if parsed.subject else None


def _entry(data: bytes, media_type: str) -> dict[str, Any]:
    """How a referrer stands in the list of its subject."""
    page = json.loads(data)
    kind = page.get("artifactType") or page.get("config", {}).get("mediaType")
    entry = {"mediaType": media_type, "digest": digest_of(data), "size": len(data), "artifactType": kind}
    return entry | ({"annotations": page["annotations"]} if page.get("annotations") else {})


def _manifests_of(data: bytes) -> list[dict[str, Any]]:
    """The entries of an index that parses, with all their fields."""
    parse_index(data)
    found: list[dict[str, Any]] = json.loads(data)["manifests"]
    return found


def _fallback_tag(subject: str) -> str:
    return subject.replace(":", "-")

"""OCI distribution 1.1 under `/v2/`: thin routes over `store.py` and `uploads.py`.

The caller decides who may do what: `authorize(request, repository, action)` raises `NotAuthorized` or returns. Without one,
nothing is allowed. It may set `zone` and `caller` in the request's state, which say whose places a download takes.
"""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from hub.registry.admission_queue import AdmissionQueue, TooManyDownloads
from hub.registry.errors import NotAuthorized, OutOfOrder, RegistryRefused, Unacceptable
from hub.registry.remote_client import RegistryDown
from hub.registry.store import RegistryStore, StoredManifest
from hub.registry.uploads import Uploads
from model_formats.core.errors import HubError
from model_formats.package.oci import INDEX, MAX_JSON, canonical, parse_index, parse_manifest

__all__ = ["Action", "Authorize", "router", "unsafe_allow_all"]

Action = Literal["pull", "push", "delete"]
_WAIT_S = 20.0
"""Seconds that a request waits for a blob that is kept elsewhere; then the caller is told to ask again."""
Authorize = Callable[[Request, str, Action], Awaitable[None] | None]


def unsafe_allow_all(_request: Request, _repository: str, _action: Action) -> None:
    """For tests and for a registry that only this machine reaches."""


def allow_nobody(_request: Request, _repository: str, _action: Action) -> None:
    """The default."""
    raise NotAuthorized("this registry has no rule for who may use it", hint="The hub passes `authorize` to `router`.")


def router(store: RegistryStore, authorize: Authorize = allow_nobody, admission: AdmissionQueue | None = None) -> APIRouter:
    """All routes of the specification's four categories: pull, push, content discovery, content management.

    `admission`: how many blobs may be drawn at once; None: as many as are asked for.
    """
    routes = _Routes(store, Uploads(store), authorize, admission)
    found = APIRouter(prefix="/v2", route_class=_OciRoute, include_in_schema=False)
    for method, path, action, handler in routes.table():
        found.add_api_route(path, handler, methods=[method], dependencies=[Depends(routes.guard(action))], response_model=None)
    return found


class _OciRoute(APIRoute):
    """Refusals become the specification's error documents."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        plain = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await plain(request)
            except RegistryRefused as e:
                return _refusal(request, e)
            except HubError as e:
                body = {"errors": [{"code": "UNAVAILABLE", "message": e.message, "detail": e.hint}]}
                return JSONResponse(body, status_code=e.http, headers={"Retry-After": "5"})

        return handler


class _Routes:
    """One method a route."""

    def __init__(self, store: RegistryStore, uploads: Uploads, authorize: Authorize, admission: AdmissionQueue | None) -> None:
        self._store, self._uploads, self._authorize, self._admission = store, uploads, authorize, admission

    def table(self) -> list[tuple[str, str, Action, Callable[..., Any]]]:
        """Method, path, action, handler; the first that matches wins."""
        uploads, one_upload = "/{name:path}/blobs/uploads/", "/{name:path}/blobs/uploads/{session}"
        blob, manifest = "/{name:path}/blobs/{digest}", "/{name:path}/manifests/{reference}"
        return [
            ("GET", "/", "pull", self.version),
            ("POST", uploads, "push", self.start_upload),
            ("GET", one_upload, "push", self.upload_status),
            ("PATCH", one_upload, "push", self.append_upload),
            ("PUT", one_upload, "push", self.finish_upload),
            ("DELETE", one_upload, "push", self.cancel_upload),
            ("GET", blob, "pull", self.get_blob),
            ("HEAD", blob, "pull", self.head_blob),
            ("DELETE", blob, "delete", self.delete_blob),
            ("GET", manifest, "pull", self.get_manifest),
            ("HEAD", manifest, "pull", self.get_manifest),
            ("PUT", manifest, "push", self.put_manifest),
            ("DELETE", manifest, "delete", self.delete_manifest),
            ("GET", "/{name:path}/tags/list", "pull", self.tags),
            ("GET", "/{name:path}/referrers/{digest}", "pull", self.referrers),
        ]

    def guard(self, action: Action) -> Callable[[Request], Awaitable[None]]:
        """The dependency that asks `authorize` before a route runs."""

        async def check(request: Request) -> None:
            answer = self._authorize(request, request.path_params.get("name", ""), action)
            if inspect.isawaitable(answer):
                await answer

        return check

    def version(self) -> Response:
        """Yes, this speaks the distribution API."""
        return JSONResponse({}, headers={"Docker-Distribution-API-Version": "registry/2.0"})

    # ---- push

    async def start_upload(self, request: Request, name: str) -> Response:
        """A session; or the whole blob at once (`digest`); or a blob of another repository (`mount`, `from`)."""
        query = request.query_params
        if "mount" in query and await self._may_mount(request, query.get("from", ""), query["mount"]):
            await to_thread.run_sync(self._store.link, name, query["mount"])
            return _created(name, query["mount"])
        session = self._uploads.start(name)
        if "digest" in query:
            await self._uploads.append(name, session, request.stream())
            return await self._finish(name, session, query["digest"])
        return self._standing(202, name, session, 0)

    def upload_status(self, name: str, session: str) -> Response:
        """How far an upload is."""
        return self._standing(204, name, session, self._uploads.offset(name, session))

    async def append_upload(self, request: Request, name: str, session: str) -> Response:
        """One chunk, in order."""
        offset = await self._uploads.append(name, session, request.stream(), _start(request))
        return self._standing(202, name, session, offset)

    async def finish_upload(self, request: Request, name: str, session: str, digest: str) -> Response:
        """The last chunk, if any, and the digest of the whole."""
        await self._uploads.append(name, session, request.stream(), _start(request))
        return await self._finish(name, session, digest)

    def cancel_upload(self, name: str, session: str) -> Response:
        """Never mind."""
        self._uploads.cancel(name, session)
        return Response(status_code=204)

    async def put_manifest(self, request: Request, name: str, reference: str) -> Response:
        """A manifest or index whose parts are here."""
        data = await _bounded(request.stream(), MAX_JSON)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip()
        digest, subject = await to_thread.run_sync(self._store.put_manifest, name, reference, media_type, data)
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        return Response(status_code=201, headers=headers | ({"OCI-Subject": subject} if subject else {}))

    # ---- pull

    def get_blob(self, name: str, digest: str) -> Response:
        """A blob, or a range of it."""
        if not self._store.holds(name, digest):
            raise RegistryRefusedBlob(name, digest)
        if not self._store.ready(digest, _WAIT_S):
            raise RegistryDown(f"{digest} is still on its way here from the external registry", hint="Ask again in a moment.")
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        return _BlobResponse(self._store.path(digest), self._admission, headers)

    def head_blob(self, name: str, digest: str) -> Response:
        """Whether a blob is here, and how large: what pushers ask before they send it."""
        size = self._store.confirmed_size(name, digest)
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"', "Content-Length": str(size), "Accept-Ranges": "bytes"}
        return Response(media_type="application/octet-stream", headers=headers)

    def get_manifest(self, name: str, reference: str) -> Response:
        """A manifest by tag or digest."""
        held = self._store.manifest(name, reference)
        return Response(held.data, media_type=held.media_type, headers={"Docker-Content-Digest": held.digest})

    # ---- discovery

    def tags(self, request: Request, name: str, n: int | None = None, last: str | None = None) -> Response:
        """Tags in lexical order, `n` a page, after `last`."""
        found = [t for t in self._store.tags(name) if last is None or t.lower() > last.lower()]
        page = found if n is None else found[: max(n, 0)]
        headers = {}
        if page and len(page) < len(found):
            headers["Link"] = f'</v2/{name}/tags/list?n={n}&last={page[-1]}>; rel="next"'
        return JSONResponse({"name": name, "tags": page}, headers=headers)

    def referrers(self, request: Request, name: str, digest: str) -> Response:
        """An index of the manifests whose subject is `digest`; empty, never 404."""
        wanted = request.query_params.get("artifactType")
        entries = [entry for held in self._store.referrers(name, digest) if (entry := _entry(held, wanted))]
        body = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        headers = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        return Response(body, media_type=INDEX, headers=headers)

    # ---- management

    def delete_manifest(self, name: str, reference: str) -> Response:
        """A tag, or a manifest with its tags."""
        self._store.delete_manifest(name, reference)
        return Response(status_code=202)

    def delete_blob(self, name: str, digest: str) -> Response:
        """A blob of this repository."""
        self._store.delete_blob(name, digest)
        return Response(status_code=202)

    # ---- inside

    async def _may_mount(self, request: Request, source: str, digest: str) -> bool:
        if not source or not self._store.holds(source, digest):
            return False
        try:
            answer = self._authorize(request, source, "pull")
            if inspect.isawaitable(answer):
                await answer
        except RegistryRefused:
            return False
        return True

    async def _finish(self, name: str, session: str, digest: str) -> Response:
        await to_thread.run_sync(self._uploads.finish, name, session, digest)
        return _created(name, digest)

    def _standing(self, status: int, name: str, session: str, offset: int) -> Response:
        where = {"Location": f"/v2/{name}/blobs/uploads/{session}", "Docker-Upload-UUID": session, "OCI-Chunk-Min-Length": "1"}
        return Response(status_code=status, headers=where | {"Range": f"0-{max(offset - 1, 0)}"})


class RegistryRefusedBlob(RegistryRefused):
    """A blob that this repository does not serve."""

    code = "registry_blob_unknown"
    http = 404
    oci_default = "BLOB_UNKNOWN"

    def __init__(self, repository: str, digest: str) -> None:
        super().__init__(f"{repository}: has no blob {digest}")


class _BlobResponse(FileResponse):
    """A blob, while there is a place for it; who draws none of its bytes (HEAD) needs none."""

    chunk_size = 1 << 20

    def __init__(self, path: Path, admission: AdmissionQueue | None, headers: dict[str, str]) -> None:
        super().__init__(path, media_type="application/octet-stream", headers=headers)
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._admission is None or scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        request = Request(scope)
        caller = getattr(request.state, "caller", request.client.host if request.client else "")
        try:
            with self._admission.place(getattr(request.state, "zone", ""), caller), contextlib.suppress(TimeoutError):
                await super().__call__(scope, receive, self._admission.lively(send))  # cut short, the server hangs up
        except TooManyDownloads as e:
            await _refusal(request, e)(scope, receive, send)


def _refusal(request: Request, error: RegistryRefused) -> Response:
    headers = {}
    if isinstance(error, NotAuthorized) and error.http == 401:
        headers["WWW-Authenticate"] = 'Basic realm="spokeshave"'
    if isinstance(error, TooManyDownloads):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, OutOfOrder):
        headers |= {"Range": f"0-{max(error.offset - 1, 0)}", "Location": request.url.path}
    body = {"errors": [{"code": error.oci, "message": error.message, "detail": error.hint}]}
    return JSONResponse(body, status_code=error.http, headers=headers)


def _created(name: str, digest: str) -> Response:
    return Response(status_code=201, headers={"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})


def _start(request: Request) -> int | None:
    text = request.headers.get("content-range")
    if text is None:
        return None
    try:
        return int(text.removeprefix("bytes ").partition("-")[0])
    except ValueError as e:
        raise Unacceptable(f"Content-Range {text!r} is not START-END", oci="BLOB_UPLOAD_INVALID") from e


async def _bounded(stream: AsyncIterator[bytes], limit: int) -> bytes:
    data = bytearray()
    async for chunk in stream:
        data += chunk
        if len(data) > limit:
            raise Unacceptable(f"more than the {limit} bytes allowed", oci="SIZE_INVALID")
    return bytes(data)


def _entry(held: StoredManifest, wanted: str | None) -> dict[str, Any] | None:
    parsed = parse_index(held.data) if held.media_type == INDEX else parse_manifest(held.data)
    kind = parsed.artifact_type or getattr(getattr(parsed, "config", None), "media_type", None)
    if wanted not in (None, kind):
        return None
    entry = {"mediaType": held.media_type, "digest": held.digest, "size": len(held.data), "artifactType": kind}
    return entry | ({"annotations": parsed.annotations} if parsed.annotations else {})

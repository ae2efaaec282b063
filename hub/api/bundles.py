"""`/bundles`, `/receipts`: the way to spokes without a network, and back."""

import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from hub.api.access import HubPart, needs
from hub.rules.access import Permission, Principal
from hub.rules.egress_residency import judge
from hub.services.package_index import known_package
from hub.services.sideload import export, import_receipts
from model_formats.core.types import ModelRef
from sync.core.types import SpokeId

__all__ = ["router"]

router = APIRouter(tags=["sideload"])
Exporter = Annotated[Principal, Depends(needs(Permission.EXPORT))]


class BundleOrder(BaseModel):
    """For whom, and what. `models` empty: what the spoke should serve already."""

    model_config = ConfigDict(extra="forbid")

    spoke: str
    models: list[str] = []
    days: Annotated[float, Field(gt=0, le=366)] = 30
    encrypt: bool = False
    soak_s: Annotated[int, Field(ge=0, le=86400)] = 10
    """How long a new version is watched before it is committed, in seconds: somebody stands beside it and waits."""


class ImportedView(BaseModel):
    """What a file of receipts brought."""

    spoke: str
    number: int
    reports: int
    egress: int
    serving: list[str]
    refused: list[str]


@router.post("/bundles", response_class=Response)
def bundle(order: BundleOrder, hub: HubPart, who: Exporter) -> Response:
    """Write a sideload bundle and send it."""
    spoke, refs = SpokeId.parse(order.spoke), [ModelRef.parse(text) for text in order.models]
    folder = tempfile.TemporaryDirectory(dir=hub.home.root)
    try:
        path = Path(folder.name) / f"{spoke.username}.spokeshave"
        export(hub, spoke, refs, path, who.name, days=order.days, encrypt=order.encrypt, soak_s=order.soak_s)
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(path, media_type="application/octet-stream", background=BackgroundTask(folder.cleanup))


@router.post("/receipts")
async def receipts(request: Request, hub: HubPart, who: Exporter) -> ImportedView:
    """Take a file of receipts that was carried back."""
    data = await request.body()
    check = judge(lambda index: known_package(hub, index))
    done = await run_in_threadpool(import_receipts, hub, data, who.name, check)
    return ImportedView(
        spoke=f"{done.receipts.site}/{done.receipts.spoke}",
        number=done.receipts.number,
        reports=done.reports,
        egress=done.egress,
        serving=[f"{s.model}@{s.version}" for s in done.receipts.serving],
        refused=list(done.refused),
    )

"""`/models`, `/metadata`: what is released, and the way to release: proposals that others sign."""

import base64
import binascii
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from hub.api.access import HubPart, needs
from hub.api.spokes import when
from hub.api.values import Digest, Name
from hub.client.http import ApiRequestInvalid, NotFound
from hub.context import HubContext
from hub.rules.access import Permission, Principal
from hub.services.cpu_classes import on_classes
from hub.services.releases import ReleaseRequest, accept, add_family, deny, propose_release
from hub.store.versions import VersionRecord, add_delta, find_version, list_versions
from model_formats.core.types import ModelRef
from model_formats.package.read import open_package
from model_formats.signing.publisher_policy import PublisherPolicy
from sync.protocol.messages import DeltaOffer
from sync.trust.keys import key_of_pem
from sync.trust.metadata import Proposal

__all__ = ["ProposalView", "VersionDetail", "VersionView", "router"]

router = APIRouter(tags=["models"])
Reader = Annotated[Principal, Depends(needs(Permission.READ))]
Author = Annotated[Principal, Depends(needs(Permission.PUBLISH))]


class VersionView(BaseModel):
    """One released version."""

    model: str
    version: int
    title: str
    index: str
    size: int
    signature: str
    zones: list[str]
    regimes: list[str]
    fallback: list[int]
    claims: dict[str, float]
    overridden_by: str | None
    published: datetime | None
    denied: bool
    """On the published deny list: no spoke takes it, whatever the release says."""


class ClassView(BaseModel):
    """A way of serving a version on a class of CPU, by the newest signed reports of the spokes that do."""

    cpu_class: str
    variant: str
    engine: str
    mode: str
    spokes: int
    latency_us: float | None
    """Median over the spokes: run time of one row."""
    row_us: float | None
    """Median over the spokes: run time of a row in a batch of 32."""
    best: bool
    """The fastest of its class, where more than one way was measured there."""


class ClaimView(BaseModel):
    """What the signed evidence of the package says of a variant on a class of CPU."""

    cpu_class: str
    variant: str
    engine: str
    mode: str
    right: bool
    score: float | None
    worst: float | None
    """Largest deviation from the golden vectors; 1 is what is allowed."""
    emulated: bool


class VersionDetail(VersionView):
    """One released version with what is known of it on classes of CPU."""

    measured: list[ClassView]
    claimed: list[ClaimView]


class DeltaOrder(BaseModel):
    """A `DeltaOffer` as a request."""

    model_config = ConfigDict(extra="forbid")

    base: Digest
    target: Digest
    delta: Digest
    size: Annotated[int, Field(ge=0)]


class ProposalView(BaseModel):
    """Metadata that waits for signatures (`data`, base64), or has enough."""

    role: str
    version: int
    data: str
    signed: int
    threshold: int
    complete: bool


class FamilyOrder(BaseModel):
    """A model family and its approvers' public keys (PEM)."""

    model_config = ConfigDict(extra="forbid")

    keys: Annotated[list[str], Field(min_length=1)]
    threshold: Annotated[int, Field(ge=1)] = 1


class ReleaseOrder(BaseModel):
    """A pushed package to release."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1)]
    index: Digest
    signature: Digest
    publishers: dict[str, object]
    zones: list[Name] = []
    fallback: list[int] = []


class DenyOrder(BaseModel):
    """Digests that may not run any more."""

    model_config = ConfigDict(extra="forbid")

    digests: Annotated[list[Digest], Field(min_length=1)]


class SignedMetadata(BaseModel):
    """A proposal with more signatures, base64."""

    model_config = ConfigDict(extra="forbid")

    data: str


@router.get("/models")
def models(hub: HubPart, _who: Reader, model: str | None = None) -> list[VersionView]:
    """All released versions (of one model)."""
    denied = hub.repository.denied
    with hub.database.read() as db:
        return [_view(version, denied) for version in list_versions(db, model)]


@router.get("/models/{name}/{version}")
def version(name: str, version: int, hub: HubPart, _who: Reader) -> VersionDetail:
    """One version."""
    with hub.database.read() as db:
        found = find_version(db, ModelRef(name, version))
        if found is None:
            raise NotFound(f"{name}@{version} is not released")
        measured = [ClassView(**asdict(one)) for one in on_classes(db, found.index)]
    seen = _view(found, hub.repository.denied).model_dump()
    return VersionDetail(**seen, measured=measured, claimed=_claimed(hub, found.index))


@router.get("/families")
def families(hub: HubPart, _who: Reader) -> list[str]:
    """Model families that have a role of their own."""
    return hub.repository.families()


@router.post("/families/{name}")
def new_family(name: Name, order: FamilyOrder, hub: HubPart, who: Author) -> ProposalView:
    """Propose a model family."""
    keys = [key_of_pem(pem.encode()) for pem in order.keys]
    return _proposal(add_family(hub, name, keys, order.threshold, who.name))


@router.post("/models/{name}")
def release(name: Name, order: ReleaseOrder, hub: HubPart, who: Author) -> ProposalView:
    """Check a pushed package and propose its release."""
    request = ReleaseRequest(
        ref=ModelRef(name, order.version),
        index=order.index,
        signature=order.signature,
        publishers=PublisherPolicy.from_json(order.publishers),
        zones=tuple(order.zones),
        fallback=tuple(order.fallback),
    )
    return _proposal(propose_release(hub, request, who.name))


@router.post("/models/{name}/{version}/deltas")
def offer(name: Name, version: int, order: DeltaOrder, hub: HubPart, _who: Author) -> VersionView:
    """Offer a pushed delta towards a file of a version. Nobody has to trust it: the result must hash to the signed digest."""
    with hub.database.begin() as db:
        found = find_version(db, ModelRef(name, version))
        if found is None or not hub.registry.has(order.delta):
            raise NotFound(f"{name}@{version} is not released, or the delta was not pushed")
        add_delta(db, found.ref, DeltaOffer(base=order.base, target=order.target, delta=order.delta, size=order.size))
    return _view(found, hub.repository.denied)


@router.post("/deny")
def refuse(order: DenyOrder, hub: HubPart, who: Author) -> ProposalView:
    """Propose that digests may not run any more."""
    return _proposal(deny(hub, order.digests, who.name))


@router.get("/metadata")
def pending(hub: HubPart, _who: Reader) -> list[ProposalView]:
    """Proposals that wait for signatures."""
    with hub.trust() as repository:
        return [_proposal(proposal) for proposal in repository.pending()]


@router.post("/metadata/{role}")
def sign(role: str, order: SignedMetadata, hub: HubPart, who: Author) -> ProposalView:
    """Hand a proposal back with signatures; it is published when there are enough of them."""
    try:
        data = base64.b64decode(order.data, validate=True)
    except binascii.Error as e:
        raise ApiRequestInvalid(f"data: not base64: {e}") from e
    return _proposal(accept(hub, role, data, who.name))


@router.get("/tuf/{file}", response_class=Response)
def tuf(file: str, hub: HubPart, _request: Request) -> Response:
    """A release metadata file. Open: it holds no secret, and what protects it is its signatures."""
    with hub.trust() as repository:
        data = repository.files().get(file)
    if data is None:
        raise NotFound(f"there is no metadata file {file}")
    return Response(data, media_type="application/json")


def _claimed(hub: HubContext, index: str) -> list[ClaimView]:
    """From the hub's own copy of the package; nothing where it has none any more."""
    if not hub.registry.has(index):
        return []
    evidence = open_package(hub.registry, index).evidence
    return [
        ClaimView(
            cpu_class=one.cpu_class,
            variant=each.variant,
            engine=one.engine,
            mode=one.mode,
            right=one.right,
            score=one.score,
            worst=one.worst,
            emulated=one.emulated,
        )
        for each in evidence.variants
        for one in each.classes
    ]


def _proposal(proposal: Proposal) -> ProposalView:
    return ProposalView(
        role=proposal.role,
        version=proposal.version,
        data=base64.b64encode(proposal.data).decode(),
        signed=proposal.signed,
        threshold=proposal.threshold,
        complete=proposal.complete,
    )


def _view(version: VersionRecord, denied: Collection[str]) -> VersionView:
    return VersionView(
        model=version.ref.name,
        version=version.ref.version,
        title=version.title,
        index=version.index,
        size=version.size,
        signature=version.signature,
        zones=list(version.zones),
        regimes=list(version.regimes),
        fallback=list(version.fallback),
        claims=version.claims,
        overridden_by=version.overridden_by,
        published=when(version.published),
        denied=version.index in denied,
    )

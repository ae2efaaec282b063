"""Releases: what was pushed is checked, proposed to the approvers of its family, and indexed once enough of them have signed.

A running hub holds no key that could release: it prepares metadata, others sign it (`hub model publish` where the keys are), and
`accept` publishes what has enough signatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tuf.api.metadata import Metadata, Targets

from hub.context import HubContext
from hub.rules.audit_action import AuditAction
from hub.store.audit import append_audit
from hub.store.versions import VersionRecord, add_version
from model_formats.core.errors import OperatorError
from model_formats.core.types import ModelRef
from model_formats.package.read import Package, open_package
from model_formats.signing.publisher_policy import Publisher, PublisherPolicy
from model_formats.signing.signature import PublisherUntrusted, verify_package
from sync.trust.documents import ReleaseTerms
from sync.trust.keys import Key
from sync.trust.metadata import Proposal, ReleaseInvalid

__all__ = ["NotPushed", "ReleaseRequest", "accept", "add_family", "deny", "propose_release", "reindex"]


class NotPushed(OperatorError):
    """A digest that the registry does not hold."""

    code = "not_pushed"
    hint = "Push the package first (`hub model publish` does it), then release it."


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """What to release, and on which terms."""

    ref: ModelRef
    index: str
    signature: str
    """Digest of the publisher's bundle, a blob in the registry."""
    publishers: PublisherPolicy
    zones: tuple[str, ...] = ()
    """Empty: the zones of the package's own residency label. They can only be narrowed."""
    fallback: tuple[int, ...] = ()


def add_family(hub: HubContext, name: str, keys: Sequence[Key], threshold: int, who: str) -> Proposal:
    """Propose a model family with its approvers; the targets role must sign it."""
    with hub.trust() as repository:
        proposal = repository.add_model_family(name, keys=keys, threshold=threshold)
    _note(hub, who, AuditAction.FAMILY_PROPOSE, name, proposal)
    return proposal


def propose_release(hub: HubContext, request: ReleaseRequest, who: str) -> Proposal:
    """Check a pushed package and propose its release. Raises NotPushed, PublisherUntrusted, PackageInvalid, ReleaseInvalid.

    1. It is in the registry, whole.
    2. It is the model and version it is released as.
    3. Its publisher's signature holds under the policy that goes with it.
    4. Its zones are within its own residency label.
    """
    package = _package(hub, request.index)  # 1
    if (package.spec.model, package.spec.version) != (request.ref.name, request.ref.version):  # 2
        raise NotPushed(f"the package is {package.spec.model}@{package.spec.version}, not {request.ref}")
    _verify(hub, request)  # 3
    zones = request.zones or package.spec.residency.zones
    outside = sorted(set(zones) - set(package.spec.residency.zones))
    if outside:  # 4
        raise NotPushed(f"zone {outside[0]} is outside the package's residency label", hint="Build it with that zone.")
    with hub.trust() as repository:
        if request.ref.name in repository.families() and f"model-{request.ref.name}.json" not in repository.files():
            raise ReleaseInvalid(
                f"the first metadata of model family {request.ref.name} is not signed yet",
                hint="`GET /api/v1/metadata` lists what waits for signatures; its approvers must sign it once.",
            )
        proposal = repository.release(
            request.ref,
            request.index,
            hub.registry.path(request.index).stat().st_size,
            signature_digest=request.signature,
            signature_size=hub.registry.path(request.signature).stat().st_size,
            zones=zones,
            regimes=package.spec.residency.regimes,
            publishers=request.publishers,
            fallback=request.fallback,
        )
    _note(hub, who, AuditAction.RELEASE_PROPOSE, str(request.ref), proposal)
    return proposal


def deny(hub: HubContext, digests: Sequence[str], who: str) -> Proposal:
    """Propose that some digests may not run any more; the targets role must sign it."""
    with hub.trust() as repository:
        proposal = repository.deny(*digests)
    _note(hub, who, AuditAction.DENY_PROPOSE, ",".join(digests)[:200], proposal)
    return proposal


def accept(hub: HubContext, role: str, data: bytes, who: str) -> Proposal:
    """Take a proposal back with signatures; publish and index it when there are enough. Raises MetadataRefused."""
    with hub.trust() as repository:
        proposal = repository.accept(role, data)
    _note(hub, who, AuditAction.METADATA_ACCEPT, role, proposal)
    if proposal.complete:
        reindex(hub)
    return proposal


def reindex(hub: HubContext) -> None:
    """Bring the table of versions in line with the metadata, which is the truth."""
    with hub.trust() as repository:
        files = repository.files()
        released = [
            _targets(files[f"model-{family}.json"]) for family in repository.families() if f"model-{family}.json" in files
        ]
    with hub.database.begin() as db:
        for targets in released:
            for path, target in targets.targets.items():
                terms = ReleaseTerms.of(target.custom)
                index = f"sha256:{target.hashes['sha256']}"
                if hub.registry.has(index):
                    add_version(db, _version(hub, path, index, target.length, terms))
    hub.wake.set()


def _targets(data: bytes) -> Targets:
    metadata: Metadata[Targets] = Metadata.from_bytes(data)
    return metadata.signed


def _version(hub: HubContext, path: str, index: str, size: int, terms: ReleaseTerms) -> VersionRecord:
    _, model, number, _ = path.split("/")
    package = open_package(hub.registry, index)
    return VersionRecord(
        ref=ModelRef(model, int(number)),
        index=index,
        size=size,
        signature=terms.signature.digest,
        title=package.spec.title,
        zones=terms.zones,
        regimes=package.spec.residency.regimes if terms.regimes is None else terms.regimes,
        fallback=terms.fallback,
        claims={v.variant: v.score for v in package.evidence.variants},
        overridden_by=package.evidence.gate.overridden_by,
        published=hub.now,
    )


def _package(hub: HubContext, index: str) -> Package:
    if not hub.registry.has(index):
        raise NotPushed(f"{index} is not in the registry")
    return open_package(hub.registry, index)


def _verify(hub: HubContext, request: ReleaseRequest) -> Publisher:
    if not hub.registry.has(request.signature):
        raise NotPushed(f"the signature {request.signature} is not in the registry")
    bundle = hub.registry.path(request.signature).read_bytes()
    publisher = verify_package(hub.registry, request.index, bundle, request.publishers, hub.clock.now())
    if publisher.proof != "full":  # spokes rely on this check: they have no library for it
        raise PublisherUntrusted(
            "signature: to release a keyless signature this hub needs the sigstore library",
            hint="Install the extra `spokeshave[sigstore]` where the hub runs.",
        )
    return publisher


def _note(hub: HubContext, who: str, action: AuditAction, what: str, proposal: Proposal) -> None:
    details = {"role": proposal.role, "version": str(proposal.version), "signed": f"{proposal.signed} of {proposal.threshold}"}
    with hub.database.begin() as db:
        append_audit(db, who, action, what, now=hub.now, details=details)

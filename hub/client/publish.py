"""From a model folder to a released version: pack, sign, push, propose, approve. Runs where the keys are.

The hub holds no key that can release: it checks what was pushed and prepares the metadata. The keys in `keys` sign it here, or it
waits (`hub model sign`) for people who hold the others.
"""

import base64
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Targets

from hub.client.http import HubClient
from hub.registry.push_pull import pull, push
from model_formats.core.errors import OperatorError
from model_formats.core.types import ModelRef, digest_of
from model_formats.delta.plan import PlannedDelta, plan_deltas
from model_formats.package import ImageLayout, attach, open_package, pack
from model_formats.package.oci import SIGNATURE, parse_manifest
from model_formats.signing.signature import KeySigner, PublisherPolicy, PublisherUntrusted, Signer, sign_package, verify_package
from sync.trust.documents import ReleaseTerms
from sync.trust.keys import load_signer, pem_of, role_signer, save_signer
from sync.trust.metadata import add_signature

__all__ = ["Published", "ReleaseIncomplete", "publish", "publisher_key", "sign", "sign_pending", "verify"]

DELTA = "application/vnd.spokeshave.delta.v1"
Progress = Callable[[str], None]


class ReleaseIncomplete(OperatorError):
    """The release waits for signatures by keys that are not on this machine."""

    code = "release_incomplete"
    hint = "Whoever holds the missing keys runs `hub model sign`; then run `hub model publish` again."


@dataclass(frozen=True, slots=True)
class Published:
    """A version on the hub. `complete` False: it waits for more signatures."""

    ref: ModelRef
    index: str
    signature: str
    complete: bool
    signed: int
    threshold: int
    deltas: tuple[PlannedDelta, ...] = ()


def publish(
    hub: HubClient,
    folder: Path,
    layout: Path,
    keys: Path,
    *,
    signer: Signer | None = None,
    policy: PublisherPolicy | None = None,
    zones: Sequence[str] = (),
    fallback: Sequence[int] | None = None,
    deltas: int = 3,
    say: Progress = lambda _: None,
) -> Published:
    """Release the model folder `folder`. Doing it again with the same folder goes on where it stopped.

    `fallback` None: the newest lower version that is released. `deltas`: from so many earlier versions. Without `signer` and
    `policy` the publisher's key in `keys` signs, and is the one to be trusted.
    """
    if signer is None or policy is None:
        own = publisher_key(keys)
        signer, policy = own, own.policy
    index = pack(folder, layout)
    blobs = ImageLayout(layout)
    spec = open_package(blobs, index).spec
    ref = ModelRef(spec.model, spec.version)
    say(f"packed {ref} as {index[:19]}")
    earlier = [v for v in hub.get("/models", model=ref.name) if v["version"] < ref.version]
    planned = _make_deltas(blobs, index, [v["index"] for v in reversed(earlier)][:deltas])
    bundle = _signature(blobs, index, signer, policy)
    push(blobs, index, str(hub.http.base_url), hub.http, progress=lambda blob: say(f"pushed {blob.path or blob.digest[:19]}"))
    _require_family(hub, ref.name, keys)
    order = {
        "version": ref.version,
        "index": index,
        "signature": digest_of(bundle),
        "publishers": policy.plain,
        "zones": list(zones),
        "fallback": [v["version"] for v in earlier][-1:] if fallback is None else list(fallback),
    }
    proposal = sign(hub, hub.post(f"/models/{ref.name}", order), keys)
    if proposal["complete"]:
        for delta in planned:
            offer = {"base": delta.base, "target": delta.target, "delta": delta.delta, "size": delta.size}
            hub.post(f"/models/{ref.name}/{ref.version}/deltas", offer)
    return Published(
        ref, index, digest_of(bundle), proposal["complete"], proposal["signed"], proposal["threshold"], tuple(planned)
    )


def publisher_key(keys: Path) -> KeySigner:
    """The publisher's key on this machine (`publisher.pem`, EC P-256); made at first use."""
    path = keys / "publisher.pem"
    if not path.exists():
        keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        KeySigner.generate().save(path)
    return KeySigner.load(path)


def sign_pending(hub: HubClient, keys: Path) -> list[dict[str, Any]]:
    """Sign every proposal that waits, with every key here that may; returns them as they are then."""
    return [sign(hub, proposal, keys) for proposal in hub.get("/metadata")]


def sign(hub: HubClient, proposal: dict[str, Any], keys: Path) -> dict[str, Any]:
    """Add the signatures of the role's keys here and hand it back; whether they count is for the hub to say."""
    if proposal["complete"]:
        return proposal
    names = [path for path in sorted(keys.glob("*.pem")) if _may_sign(path.stem, proposal["role"])]
    if not names:
        return proposal
    data = add_signature(base64.b64decode(proposal["data"]), *(load_signer(path) for path in names))
    answer: dict[str, Any] = hub.post(f"/metadata/{proposal['role']}", {"data": base64.b64encode(data).decode()})
    return answer


def _may_sign(name: str, role: str) -> bool:
    """Key files are named after their role: `root-1.pem`, `targets.pem`, `model-digits.pem`, `model-digits.ann.pem`."""
    return name == role or name.startswith((f"{role}-", f"{role}."))


def _signature(blobs: ImageLayout, index: str, signer: Signer, policy: PublisherPolicy) -> bytes:
    """The signature that is there already and holds under the policy, or a new one: what is proposed twice keeps its first."""
    for held in blobs.referrers(index, SIGNATURE):
        bundle = blobs.path(parse_manifest(blobs.path(held.digest).read_bytes()).layers[0].digest).read_bytes()
        with contextlib.suppress(PublisherUntrusted):  # by somebody else, or by a certificate that has ended
            verify_package(blobs, index, bundle, policy, datetime.now(UTC))
            return bundle
    bundle = sign_package(blobs, index, signer)
    attach(blobs, index, SIGNATURE, bundle)
    return bundle


def _make_deltas(blobs: ImageLayout, index: str, bases: Sequence[str]) -> list[PlannedDelta]:
    here = [base for base in bases if blobs.has(base)]
    planned = plan_deltas(blobs, index, here, blobs) if here else []
    for delta in planned:
        data = blobs.path(delta.delta).read_bytes()
        attach(blobs, index, DELTA, data, annotations={"base": delta.base, "target": delta.target})
    return planned


def _require_family(hub: HubClient, name: str, keys: Path) -> None:
    """Make the family's role with a first key of this machine, where there is none yet."""
    if name not in hub.get("/families"):
        path = keys / f"model-{name}.pem"
        if not path.exists():
            save_signer(path, role_signer())
        pem = pem_of(load_signer(path).public_key)
        sign(hub, hub.post(f"/families/{name}", {"keys": [pem], "threshold": 1}), keys)
    waiting = [p["role"] for p in sign_pending(hub, keys) if not p["complete"] and p["role"] in ("targets", f"model-{name}")]
    if waiting:
        raise ReleaseIncomplete(f"model family {name} waits for signatures on {', '.join(waiting)}")


def verify(hub: HubClient, ref: ModelRef, layout: Path) -> dict[str, Any]:
    """Pull a version into `layout` and check it whole: every byte, and the signature that was released with it.

    Raises PublisherUntrusted, PackageTampered, PackageInvalid.
    """
    blobs = ImageLayout(layout)
    index = pull(blobs, str(hub.http.base_url), hub.http, ref.name, str(ref.version))
    package = open_package(blobs, index)
    for variant in package.spec.variants:
        package.check(variant.name)
    targets: Metadata[Targets] = Metadata.from_bytes(hub.send("GET", f"/tuf/model-{ref.name}.json").content)
    terms = ReleaseTerms.of(targets.signed.targets[ref.target].custom)
    bundle = blobs.path(terms.signature.digest).read_bytes()
    publisher = verify_package(blobs, index, bundle, terms.publishers, datetime.now(UTC))
    files = package.files.values()
    return {
        "model": str(ref),
        "index": index,
        "files": len(files),
        "bytes": sum(f.size for f in files),
        "publisher": publisher.name,
        "signed_by": publisher.kind,
        "proof": publisher.proof,
    }

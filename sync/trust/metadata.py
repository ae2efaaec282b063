"""The author's side of TUF: one repository of released versions, in files, with the keys beside it or elsewhere.

    root        2 of 3 people, offline: names all keys
    targets     offline: the director's key, the deny list, one delegated role per model family
    model-<f>   the family's approvers, k of n: the versions `models/<f>/<n>/index.json` with their terms
    snapshot    online: which version of each file belongs together
    timestamp   online: that this is still so
    (director)  online, not a TUF role: signs directives; its public key is a target

A hub needs only the online keys to run. Whatever needs another key is written as a proposal, carried to whoever holds the key
(`add_signature`), and published by `accept` once enough have signed. Where the keys are on this machine, all that happens in one
call.

Metadata is not versioned by file name (except root): it is published on retained topics, where old versions would pile up.
Publish the files in the order of `files()`; `timestamp.json` comes last and is what tells a spoke to look.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from model_formats.core.errors import OperatorError
from model_formats.core.types import ModelRef, hex_of
from model_formats.signing.publisher_policy import PublisherPolicy
from sync.core.clock import Clock, SystemClock
from sync.core.types import Reason, Regime
from sync.trust.documents import (
    DENY,
    DIRECTOR,
    DenyList,
    DirectorKeys,
    Freshness,
    Lane,
    ReleaseTerms,
    SignatureRef,
    file_of_target,
)
from sync.trust.errors import KeyMissing, MetadataRefused
from sync.trust.freshness import LIFETIME
from sync.trust.keys import Key, PublicKey, Signer, pem_of
from sync.trust.repository_files import ONLINE, RepositoryFiles, read_metadata
from sync.trust.workflow import check_distinct

__all__ = ["Proposal", "ReleaseInvalid", "Repository", "add_signature", "role_of_model"]

R = TypeVar("R", Root, Targets, Snapshot, Timestamp)

YEAR = timedelta(days=365)
_LIFE = {"root": 2 * YEAR, "targets": YEAR, "snapshot": timedelta(days=90)}
_TOP = ("root", "targets", "snapshot", "timestamp")


class ReleaseInvalid(OperatorError):
    """A release, denial or key change that contradicts what is there."""

    code = "release_invalid"
    hint = "Look at what is released with `hub model list`."


@dataclass(frozen=True, slots=True)
class Proposal:
    """New metadata of one role, with the signatures it has so far."""

    role: str
    version: int
    data: bytes
    signed: int
    threshold: int
    complete: bool
    """True: enough people signed, and it is published."""


def role_of_model(name: str) -> str:
    """The delegated role of a model family."""
    return f"model-{name}"


def add_signature(data: bytes, *signers: Signer) -> bytes:
    """Sign proposed metadata: all that the offline machine does. It reads nothing but these bytes and its key."""
    metadata: Metadata[Any] = read_metadata(data)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


class Repository:
    """TUF metadata in `folder`, keys of offline roles in `keys` (default `folder/keys`), online keys in `folder/online`."""

    def __init__(self, folder: Path, *, keys: Path | None = None, clock: Clock | None = None) -> None:
        self.folder = folder
        self.keys = keys or folder / "keys"
        self._files = RepositoryFiles(folder, self.keys)
        self._clock = clock or SystemClock()

    # ---- beginning ---------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, folder: Path, *, keys: Path | None = None, clock: Clock | None = None, root_keys: int = 3, root_threshold: int = 2
    ) -> Self:
        """Make keys and first metadata. Raises ReleaseInvalid where a repository is already."""
        repo = cls(folder, keys=keys, clock=clock)
        if repo._files.exists("timestamp"):
            raise ReleaseInvalid(f"{folder} already holds a repository", hint="Use it, or choose another folder.")
        signers = repo._first_keys(root_keys)
        root = Root(expires=repo._until("root"), consistent_snapshot=False)
        for name, signer in signers:
            role = name.partition("-")[0]
            if role in _TOP:
                root.add_key(signer.public_key, role)
        root.roles["root"].threshold = root_threshold
        repo._files.publish("root", repo._signed(root, root.roles["root"].keyids))
        targets = Targets(expires=repo._until("targets"), delegations=Delegations(keys={}, roles={}))
        director = next(signer for name, signer in signers if name == "director")
        repo._set_target(targets, DIRECTOR, DirectorKeys(keys=(PublicKey(pem=pem_of(director.public_key)),)).canonical())
        repo._set_target(targets, DENY, DenyList().canonical())
        repo._files.publish("targets", repo._signed(targets, root.roles["targets"].keyids))
        repo.refresh_online()
        return repo

    @property
    def anchor(self) -> bytes:
        """The first root, which a spoke gets at enrolment."""
        return self._files.roots()[0].read_bytes()

    @property
    def root(self) -> Root:
        """The current root."""
        return self._files.load("root", Root).signed

    @property
    def director(self) -> Signer:
        """The signer of directives. Raises KeyMissing."""
        keyids = [public.key().keyid for public in DirectorKeys.parse(self._files.target(DIRECTOR)).keys]
        found = next(self._files.signers(keyids), None)
        if found is None:
            raise KeyMissing(f"no private key of the director is in {self._files.online}")
        return found

    # ---- what is released --------------------------------------------------------------------------------------------------

    def families(self) -> list[str]:
        """Model families that have a role."""
        return sorted(role.removeprefix("model-") for role in self._delegations().roles or {})

    def add_model_family(self, name: str, *, keys: Sequence[Key] = (), threshold: int = 1) -> Proposal:
        """Delegate `models/<name>/*` to a role of its own; its approvers are `keys` (default: a fresh key in the key folder)."""
        role = role_of_model(name)
        if name in self.families():
            raise ReleaseInvalid(f"model family {name} exists")
        approvers = list(keys) or [self._files.fresh_key(role).public_key]
        targets = self._next("targets", Targets)
        paths = [f"models/{name}/*/index.json"]
        _delegations(targets).roles = {
            **(_delegations(targets).roles or {}),
            role: DelegatedRole(role, [], threshold, True, paths),  # noqa: FBT003  (python-tuf's signature)
        }
        for key in approvers:
            targets.add_key(key, role)
        return self._propose("targets", targets)

    def release(
        self,
        ref: ModelRef,
        index_digest: str,
        index_size: int,
        *,
        signature_digest: str,
        signature_size: int,
        zones: Sequence[str],
        publishers: PublisherPolicy,
        regimes: Sequence[Regime] | None = None,
        fallback: Sequence[int] = (),
    ) -> Proposal:
        """Release a version: its OCI index under its terms. A released version never changes; release a higher one instead."""
        role = role_of_model(ref.name)
        if ref.name not in self.families():
            raise ReleaseInvalid(
                f"there is no model family {ref.name}", hint="Add it first: its approvers get a role of their own."
            )
        terms = ReleaseTerms(
            signature=SignatureRef(digest=signature_digest, length=signature_size),
            zones=tuple(zones),
            regimes=None if regimes is None else tuple(regimes),
            publishers=publishers,
            fallback=tuple(sorted(fallback)),
        )
        family = self._next(role, Targets)
        self._check_release(ref, index_digest, terms, family)
        family.targets[ref.target] = _target(ref.target, index_digest, index_size, terms)
        return self._propose(role, family)

    def deny(self, *digests: str) -> Proposal:
        """Add digests to the deny list, which wins over every release and grant."""
        targets = self._next("targets", Targets)
        self._set_target(targets, DENY, DenyList(digests=tuple(sorted({*self._denied(targets), *digests}))).canonical())
        return self._propose("targets", targets)

    @property
    def denied(self) -> frozenset[str]:
        """What the published deny list holds."""
        return frozenset(self._denied(self._files.load("targets", Targets).signed))

    def renew(self, role: str) -> Proposal:
        """The same again, one version up, with a new expiry: `root`, `targets` or `model-<family>`, before it runs out."""
        if role == "root":
            return self._propose(role, self._next(role, Root))
        if role != "targets" and role not in (self._delegations().roles or {}):
            raise ReleaseInvalid(
                f"there is no role {role} to renew", hint="`hub root status` lists the roles; the hub renews its own."
            )
        return self._propose(role, self._next(role, Targets))

    # ---- keys --------------------------------------------------------------------------------------------------------------

    def roll_root(self, *, add: Sequence[Key] = (), remove: Sequence[str] = (), threshold: int | None = None) -> Proposal:
        """Change who holds root keys (`remove` by key id). Enough of the old and enough of the new must sign."""
        root = self._next("root", Root)
        self._swap(root, "root", add, remove)
        root.roles["root"].threshold = threshold or root.roles["root"].threshold
        return self._propose("root", root)

    def roll(self, *roles: str, keys: Sequence[Key] = (), threshold: int | None = None) -> list[Proposal]:
        """Replace all keys of some roles (`targets`, `snapshot`, `timestamp`, `director`, `model-<family>`), as after a theft.

        The new keys are `keys` (with one role only), or a fresh one per role on this machine. What the old ones signed is
        signed anew as soon as the change is published. After a roll of snapshot or timestamp spokes forget the old counters,
        which undoes a fast-forward. Roles that were lost together must be rolled together.
        """
        if unknown := [r for r in roles if r not in (*_TOP[1:], "director", *(self._delegations().roles or {}))]:
            raise ReleaseInvalid(f"there is no role {unknown[0]} to roll", hint="`hub root status` lists the roles.")
        if keys and len(roles) != 1:
            raise ReleaseInvalid("keys can be given for one role at a time")
        top, below = [r for r in roles if r in _TOP], [r for r in roles if r not in _TOP]
        found = [self._roll_in("root", self._next("root", Root), top, keys, threshold or 1)] if top else []
        return [*found, self._roll_in("targets", self._next("targets", Targets), below, keys, threshold or 1)] if below else found

    def status(self) -> list[dict[str, Any]]:
        """Every role: `role`, `version`, `expires`, `threshold`, `keys` (each `id`, and whether it is `here`)."""
        found = []
        for name in (*_TOP, *(self._delegations().roles or {})):
            delegator = self.root if name in _TOP else self._files.load("targets", Targets).signed
            role = delegator.get_delegated_role(name)
            here = {s.public_key.keyid for s in self._files.signers(role.keyids)}
            signed = read_metadata(self._files.data(name)).signed if self._files.exists(name) else None
            found.append(
                {
                    "role": name,
                    "version": signed.version if signed else 0,
                    "expires": signed.expires.isoformat() if signed else "-",
                    "threshold": role.threshold,
                    "keys": [{"id": keyid, "here": keyid in here} for keyid in role.keyids],
                }
            )
        return found

    # ---- publishing --------------------------------------------------------------------------------------------------------

    def pending(self) -> list[Proposal]:
        """Proposals that wait for signatures."""
        return [self._weigh(role, data) for role, data in self._files.proposals().items()]

    def accept(self, role: str, data: bytes, contents: Mapping[str, bytes] | None = None) -> Proposal:
        """Take a proposal back, with more signatures, and publish it when there are enough.

        `contents`: bytes of small targets by path, where the proposal was made elsewhere. Raises MetadataRefused for anything
        that is not the next version of the role, or is signed by nobody who may.
        """
        for content in (contents or {}).values():
            self._files.keep(content)
        data = _merged(self._files.proposal(role), data)
        self._check_next(role, data)
        return self._settle(self._weigh(role, self._without_strangers(role, data)))

    def refresh_online(self, *, max_age: timedelta = timedelta(hours=12)) -> bool:
        """Bring snapshot and timestamp up to date with what is published; True when something changed.

        With nothing new it signs a timestamp only when the last is older than `max_age`. Call it now and then, and after a crash.
        """
        changed = self._refresh_snapshot()
        if not changed and self._files.exists("timestamp"):
            held = self._files.load("timestamp", Timestamp)
            young = self._now() - Freshness.of(held.signed).issued < max_age
            if young and self._weigh("timestamp", held.to_bytes()).complete:
                return False
        self._files.publish("timestamp", self._timestamp("online", None, grow=1))
        return True

    def lift_online(self, by: int) -> None:
        """Sign snapshot and timestamp anew, `by` versions up: after a restore spokes may have seen later ones than are here."""
        snapshot = self._files.load("snapshot", Snapshot).signed
        lifted = Snapshot(version=snapshot.version + by, expires=self._until("snapshot"), meta=snapshot.meta)
        self._files.publish("snapshot", self._sign_online("snapshot", lifted))
        self._files.publish("timestamp", self._timestamp("online", None, grow=by))

    def files(self, lane: Lane = "online", site: str | None = None) -> dict[str, bytes]:
        """All current files by name, in the order to publish them. The timestamp of other lanes is signed now, for that lane
        and site."""
        found = {p.name: p.read_bytes() for p in self._files.roots()}
        for name in (DIRECTOR, DENY):
            found[file_of_target(name)] = self._files.target(name)
        for role in ("targets", *(self._delegations().roles or {}), "snapshot"):
            if self._files.exists(role):
                found[f"{role}.json"] = self._files.data(role)
        online = self._files.data("timestamp")
        found["timestamp.json"] = online if lane == "online" else self._timestamp(lane, site, grow=0).to_bytes()
        return found

    # ---- inside ------------------------------------------------------------------------------------------------------------

    def _first_keys(self, root_keys: int) -> list[tuple[str, CryptoSigner]]:
        names = [*(f"root-{n}" for n in range(1, root_keys + 1)), "targets", *ONLINE]
        return [(name, self._files.fresh_key(name)) for name in names]

    def _signed(self, signed: Signed, keyids: Iterable[str]) -> Metadata[Any]:
        metadata: Metadata[Any] = Metadata(signed)
        for signer in self._files.signers(keyids):
            metadata.sign(signer, append=True)
        return metadata

    def _propose(self, role: str, signed: Root | Targets) -> Proposal:
        check_distinct(signed)
        metadata = self._signed(signed, self._keyids(role, signed))
        return self._settle(self._weigh(role, _merged(self._files.proposal(role), metadata.to_bytes())))

    def _settle(self, proposal: Proposal) -> Proposal:
        if not proposal.complete:
            self._files.propose(proposal.role, proposal.data)
            return proposal
        self._files.publish(proposal.role, read_metadata(proposal.data))
        self._files.settle(proposal.role)
        self._follow_up(proposal.role)
        self.refresh_online()
        return proposal

    def _follow_up(self, role: str) -> None:
        """Sign anew what stands under keys that have just been replaced, where the new keys are here; else it is a proposal."""
        below = ("targets",) if role == "root" else tuple(self._delegations().roles or {}) if role == "targets" else ()
        for name in below:
            if not self._files.exists(name):
                self._propose(name, Targets(expires=self._until("targets")))
            elif not self._weigh(name, self._files.data(name)).complete:
                self._propose(name, self._next(name, Targets))

    def _weigh(self, role: str, data: bytes) -> Proposal:
        metadata: Metadata[Any] = read_metadata(data)
        results = [
            delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
            for delegator in self._delegators(role, metadata.signed)
        ]
        weakest = min(results, key=lambda r: len(r.signed) - r.threshold)
        complete = all(r.verified for r in results)
        return Proposal(role, metadata.signed.version, data, len(weakest.signed), weakest.threshold, complete)

    def _delegators(self, role: str, signed: Signed) -> list[Root | Targets]:
        if isinstance(signed, Root):
            return [signed] if signed.version == 1 else [self.root, signed]
        return [self.root if role in _TOP else self._files.load("targets", Targets).signed]

    def _keyids(self, role: str, signed: Root | Targets) -> set[str]:
        return {keyid for d in self._delegators(role, signed) for keyid in d.get_delegated_role(role).keyids}

    def _check_next(self, role: str, data: bytes) -> None:
        metadata: Metadata[Any] = read_metadata(data)
        kind = Root if role == "root" else Targets
        if role in ("snapshot", "timestamp") or not isinstance(metadata.signed, kind):
            raise MetadataRefused(Reason.METADATA_INVALID, f"this is not metadata of role {role}")
        if role not in _TOP and role.removeprefix("model-") not in self.families():
            raise MetadataRefused(Reason.METADATA_INVALID, f"nobody delegated to role {role}")
        exists = self._files.exists(role)
        expected = read_metadata(self._files.data(role)).signed.version + 1 if exists else 1
        if metadata.signed.version != expected:
            raise MetadataRefused(
                Reason.METADATA_ROLLBACK,
                f"{role} version {metadata.signed.version}, expected {expected}",
                hint="Somebody published in between: make the proposal again from the current state.",
            )
        if self._weigh(role, data).signed == 0:
            raise MetadataRefused(Reason.METADATA_INVALID, f"{role} is signed by nobody who may sign it")

    def _without_strangers(self, role: str, data: bytes) -> bytes:
        """Without signatures by keys that have no say, which would only make the file longer."""
        metadata = read_metadata(data)
        allowed = self._keyids(role, metadata.signed)
        metadata.signatures = {k: s for k, s in metadata.signatures.items() if k in allowed}
        return metadata.to_bytes()

    def _check_release(self, ref: ModelRef, digest: str, terms: ReleaseTerms, family: Targets) -> None:
        if not terms.zones or terms.publishers == PublisherPolicy():
            raise ReleaseInvalid(
                f"{ref} needs at least one zone and one publisher", hint="An empty list means nowhere, and nobody."
            )
        held = family.targets.get(ref.target)
        if held is not None and f"sha256:{held.hashes['sha256']}" != digest:
            raise ReleaseInvalid(f"{ref} is released with another content", hint=f"Release it as {ref.name}@{ref.version + 1}.")
        if any(v >= ref.version for v in terms.fallback):
            raise ReleaseInvalid(f"{ref} cannot fall back to {max(terms.fallback)}: only to lower versions")

    def _roll_in(
        self, delegator: str, signed: Root | Targets, roles: Sequence[str], keys: Sequence[Key], threshold: int
    ) -> Proposal:
        for role in roles:
            new = list(keys) or [self._files.fresh_key(role).public_key]
            if role == "director" and isinstance(signed, Targets):
                document = DirectorKeys(keys=tuple(PublicKey(pem=pem_of(k)) for k in new), threshold=threshold)
                self._set_target(signed, DIRECTOR, document.canonical())
            else:
                self._swap(signed, role, new, list(signed.get_delegated_role(role).keyids))
                signed.get_delegated_role(role).threshold = threshold
        return self._propose(delegator, signed)

    def _swap(self, delegator: Root | Targets, role: str, add: Sequence[Key], remove: Sequence[str]) -> None:
        for keyid in remove:
            with contextlib.suppress(ValueError):
                delegator.revoke_key(keyid, role)
        for key in add:
            delegator.add_key(key, role)

    def _next(self, role: str, kind: type[R]) -> R:
        """A role's metadata to change: what waits for signatures (they will be needed anew), or the published, one version up."""
        published = self._files.load(role, kind).signed if self._files.exists(role) else None
        held = self._files.proposal(role)
        if held is not None:
            waiting: R = read_metadata(held).signed
            if published is None or waiting.version > published.version:
                return waiting
        if published is None:
            raise ReleaseInvalid(f"role {role} has no metadata yet", hint="Its delegation has to be signed first.")
        published.version += 1
        published.expires = self._until("root" if role == "root" else "targets")
        return published

    def _denied(self, targets: Targets) -> tuple[str, ...]:
        return DenyList.parse(self._files.kept(targets.targets[DENY].hashes["sha256"])).digests

    def _set_target(self, targets: Targets, path: str, data: bytes) -> None:
        self._files.keep(data)
        targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])

    def _refresh_snapshot(self) -> bool:
        roles = ("targets", *(self._delegations().roles or {}))
        meta = {f"{role}.json": self._meta(role) for role in roles if self._files.exists(role)}
        version = 1
        if self._files.exists("snapshot"):
            held = self._files.load("snapshot", Snapshot)
            young = held.signed.expires - self._now() > _LIFE["snapshot"] / 2
            if held.signed.meta == meta and young and self._weigh("snapshot", held.to_bytes()).complete:
                return False
            version = held.signed.version + 1
        snapshot = Snapshot(version=version, expires=self._until("snapshot"), meta=meta)
        self._files.publish("snapshot", self._sign_online("snapshot", snapshot))
        return True

    def _timestamp(self, lane: Lane, site: str | None, *, grow: int) -> Metadata[Any]:
        exists = self._files.exists("timestamp")
        version = self._files.load("timestamp", Timestamp).signed.version if exists else 0
        now = self._now()
        timestamp = Timestamp(
            version=version + grow,
            expires=now + LIFETIME[lane],
            snapshot_meta=self._meta("snapshot"),
            unrecognized_fields=Freshness(issued=now, lane=lane, site=site).fields(),
        )
        return self._sign_online("timestamp", timestamp)

    def _sign_online(self, role: str, signed: Signed) -> Metadata[Any]:
        metadata = self._signed(signed, self.root.roles[role].keyids)
        if not self._weigh(role, metadata.to_bytes()).complete:
            raise KeyMissing(f"the {role} key is not in {self._files.online}")
        return metadata

    def _meta(self, role: str) -> MetaFile:
        data = self._files.data(role)
        return MetaFile.from_data(read_metadata(data).signed.version, data, ["sha256"])

    def _delegations(self) -> Delegations:
        return _delegations(self._files.load("targets", Targets).signed)

    def _now(self) -> datetime:
        return self._clock.now().replace(microsecond=0)

    def _until(self, role: str) -> datetime:
        return self._now() + _LIFE[role]


def _delegations(targets: Targets) -> Delegations:
    if targets.delegations is None:
        targets.delegations = Delegations(keys={}, roles={})
    return targets.delegations


def _target(path: str, digest: str, size: int, terms: ReleaseTerms) -> TargetFile:
    custom = terms.sparse
    return TargetFile(size, {"sha256": hex_of(digest)}, path, {"custom": custom})


def _merged(held: bytes | None, data: bytes) -> bytes:
    """The signatures of both, when they are over the same content; otherwise the newer proposal alone."""
    if held is None:
        return data
    old, new = read_metadata(held), read_metadata(data)
    if old.signed_bytes == new.signed_bytes:
        new.signatures = {**old.signatures, **new.signatures}
    return new.to_bytes()

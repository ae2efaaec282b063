"""The client workflow of the TUF specification (section 5), without disk or clock: what is held and offered in, a verdict out.

The rules are python-tuf's `TrustedMetadataSet`: signatures, thresholds, versions, hashes. It is an internal class of that
library; constraints.txt pins the release, and tests/sync/trust and tests/attacks hold all that is expected of it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from tuf.api.exceptions import BadVersionNumberError, EqualVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Role, Root, Targets, Timestamp
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from model_formats.core.document import DocumentRefused
from model_formats.core.types import digest_of
from sync.core.types import Reason
from sync.trust.documents import DENY, DIRECTOR, DenyList, DirectorKeys, Freshness, Lane, file_of_target
from sync.trust.errors import MetadataIncomplete, MetadataRefused
from sync.trust.freshness import EPOCH, lanes_allowed
from sync.trust.keys import Key, KeyFileInvalid
from sync.trust.trusted_release import Released, Target

__all__ = ["CAPS", "Checked", "Fetch", "advance", "after_roots", "check_distinct", "expired", "nothing", "walk_roots"]

Fetch = Callable[[str], bytes | None]
"""Gives the bytes of a metadata file by name (`timestamp.json`, `2.root.json`, `keys.director.json`), or None."""

CAPS = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000, "small": 1 << 20}
"""Largest size in bytes of each kind of file."""
MAX_ROOTS = 256
MAX_FAMILIES = 1024
_ELSEWHERE = "It was exported for another site: `hub bundle export --site SITE` makes the one for this."
_SIDELOAD = "sideload.timestamp.json"


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome: files to keep, what they say, and when the timestamp was issued (a floor of time)."""

    files: dict[str, bytes]
    released: Released
    issued: datetime


def nothing(_name: str) -> bytes | None:
    """The `fetch` of somebody who is alone."""
    return None


def walk_roots(anchor: bytes, held: Mapping[str, bytes], fetch: Fetch) -> dict[str, bytes]:
    """The chain of root metadata from the anchor to the newest there is, each signed by the one before and by itself."""
    with _refusals("root"):
        trusted = _trust(anchor)
        roots = {f"{trusted.root.version}.root.json": anchor}
        for version in range(trusted.root.version + 1, trusted.root.version + MAX_ROOTS):
            name = f"{version}.root.json"
            data = held.get(name) or _fetched(fetch, name, CAPS["root"])
            if data is None:
                break
            trusted.update_root(data)
            check_distinct(trusted.root)
            roots[name] = data
        return roots


def after_roots(held: Mapping[str, bytes], roots: Mapping[str, bytes]) -> dict[str, bytes]:
    """Forget timestamp and snapshot when root has replaced one of their keys: that is how a fast-forward is undone."""
    known = [data for name, data in roots.items() if name in held]
    kept = {name: data for name, data in held.items() if not name.endswith(".root.json")}
    # Only a root that is new to us can have replaced keys.
    if known:
        old, new = _root_of(known[-1]), _root_of(list(roots.values())[-1])
        if any(_who(old.roles[r]) != _who(new.roles[r]) for r in ("timestamp", "snapshot")):
            kept = {n: d for n, d in kept.items() if n not in ("timestamp.json", "snapshot.json", _SIDELOAD)}
    return {**roots, **kept}


def _who(role: Role) -> tuple[frozenset[str], int]:
    return frozenset(role.keyids), role.threshold


def advance(
    roots: Mapping[str, bytes],
    held: Mapping[str, bytes],
    fetch: Fetch,
    lane: Lane,
    site: str | None,
    now: datetime,
) -> Checked:
    """The client workflow of the TUF specification (5.3 to 5.6), on what is held and what is offered.

    1. Root is final. 2. Timestamp: signed, of an allowed lane, not older than the held one. 3. Snapshot: as the timestamp says,
    no role lost, none older. 4. Targets: as the snapshot says. 5. Each delegated role: as the snapshot says, signed by the keys
    of the delegator of now. 6. Director keys and deny list: as the targets say. 7. Expiry, for all, at trusted time.
    """
    trusted = _trust(next(iter(roots.values())))
    for data in list(roots.values())[1:]:
        with _refusals("root"):
            trusted.update_root(data)  # 1
    files = dict(roots)
    files |= _timestamp(trusted, held, fetch, lane, site)  # 2
    files["snapshot.json"] = _snapshot(trusted, held, fetch)  # 3
    files["targets.json"] = _role(trusted, held, fetch, "targets", "root")  # 4
    check_distinct(trusted.targets)
    refused: dict[str, MetadataRefused] = {}
    for role in (r for r in _families(trusted.targets) if f"{r.name}.json" in trusted.snapshot.meta):
        try:
            files[f"{role.name}.json"] = _role(trusted, held, fetch, role.name, "targets")  # 5
        except MetadataRefused as e:
            refused[role.name] = e
        except MetadataIncomplete as e:
            # While files are still arriving, wait for them; from the disk alone, one bad family must not close the others.
            if fetch is not nothing:
                raise
            refused[role.name] = MetadataRefused(Reason.METADATA_INVALID, e.message)
    small = {path: _small(trusted.targets, held, fetch, path) for path in (DIRECTOR, DENY)}  # 6
    files |= {file_of_target(path): data for path, data in small.items()}
    with _refusals("timestamp"):
        fresh = Freshness.of(trusted.timestamp)
    return Checked(files, _released(trusted, files, small, refused, fresh, max(now, fresh.issued)), fresh.issued)  # 7


def _timestamp(
    trusted: TrustedMetadataSet, held: Mapping[str, bytes], fetch: Fetch, lane: Lane, site: str | None
) -> dict[str, bytes]:
    own = held.get("timestamp.json")
    if own is not None:
        with _refusals("timestamp"):
            trusted.update_timestamp(own)
    offered = _fetched(fetch, "timestamp.json", CAPS["timestamp"])
    if offered is None or offered == own:
        return _kept(held, "the timestamp")
    _check_lane(trusted, offered, lane, site)
    try:
        with _refusals("timestamp"):
            trusted.update_timestamp(offered)
    # Not an error: the same version, perhaps signed again for another lane.
    except EqualVersionNumberError:
        return _merged(held, offered, lane)
    except MetadataRefused as e:
        if lane == "sideload" and e.reason is Reason.METADATA_ROLLBACK and own is not None:
            return _merged(held, offered, lane)
        raise
    return {"timestamp.json": offered}


def _kept(held: Mapping[str, bytes], what: str) -> dict[str, bytes]:
    if "timestamp.json" not in held:
        raise MetadataIncomplete(f"{what} has not arrived")
    return {name: held[name] for name in ("timestamp.json", _SIDELOAD) if name in held}


def _merged(held: Mapping[str, bytes], offered: bytes, lane: Lane) -> dict[str, bytes]:
    """The held set stays, since it is newer; a stick's longer validity is taken over, as the set is at least as fresh as the
    stick."""
    kept = _kept(held, "the timestamp")
    return {**kept, _SIDELOAD: offered} if lane == "sideload" else kept


def _check_lane(trusted: TrustedMetadataSet, data: bytes, lane: Lane, site: str | None) -> None:
    """Signed by the timestamp key, and for this way and this site; its version is judged elsewhere."""
    with _refusals("timestamp"):
        fresh = Freshness.of(_timestamp_of(trusted.root, data))
    if fresh.lane not in lanes_allowed(lane):
        raise MetadataRefused(Reason.METADATA_INVALID, f"timestamp.json: made for the {fresh.lane} lane, came over {lane}")
    if fresh.site is not None and fresh.site != site:
        raise MetadataRefused(
            Reason.WRONG_RECIPIENT, f"timestamp.json: made for site {fresh.site}, this is {site}", hint=_ELSEWHERE
        )


def _snapshot(trusted: TrustedMetadataSet, held: Mapping[str, bytes], fetch: Fetch) -> bytes:
    own = held.get("snapshot.json")
    if own is not None:
        try:
            # The held snapshot is loaded first, so that python-tuf compares the new one with it and refuses a rollback.
            trusted.update_snapshot(own, trusted=True)
            return own
        except RepositoryError:
            pass  # held for the comparison; the timestamp asks for another one
    data = _needed(fetch, "snapshot.json", trusted.timestamp.snapshot_meta.length or CAPS["snapshot"])
    with _refusals("snapshot"):
        trusted.update_snapshot(data)
    return data


def _role(trusted: TrustedMetadataSet, held: Mapping[str, bytes], fetch: Fetch, role: str, delegator: str) -> bytes:
    name = f"{role}.json"
    if name in held:
        try:
            trusted.update_delegated_targets(held[name], role, delegator)
            return held[name]
        except (RepositoryError, ValueError):
            pass  # replaced, or no longer signed by those whom the delegator names
    meta = trusted.snapshot.meta.get(name)
    if meta is None:
        raise MetadataRefused(Reason.METADATA_INVALID, f"{name}: not in the snapshot")
    data = _needed(fetch, name, meta.length or CAPS["targets"])
    with _refusals(role):
        trusted.update_delegated_targets(data, role, delegator)
    return data


def _small(targets: Targets, held: Mapping[str, bytes], fetch: Fetch, path: str) -> bytes:
    listed = targets.targets.get(path)
    if listed is None:
        raise MetadataRefused(Reason.METADATA_INVALID, f"targets.json: {path} is missing")
    # Held first: over a sideload or without a network there may be nothing else.
    for find in (held.get, fetch):
        data = find(file_of_target(path))
        if data is not None and len(data) <= CAPS["small"] and _matches(listed.length, listed.hashes, data):
            return data
    raise MetadataIncomplete(f"{path} of this version has not arrived")


def _families(targets: Targets) -> list[DelegatedRole]:
    roles = targets.delegations.roles if targets.delegations and targets.delegations.roles else {}
    if len(roles) > MAX_FAMILIES:
        raise MetadataRefused(
            Reason.METADATA_INVALID, f"targets.json: {len(roles)} delegated roles, at most {MAX_FAMILIES} are allowed"
        )
    return list(roles.values())


def _released(
    trusted: TrustedMetadataSet,
    files: Mapping[str, bytes],
    small: Mapping[str, bytes],
    refused: Mapping[str, MetadataRefused],
    freshness: Freshness,
    now: datetime,
) -> Released:
    refusals = dict(refused)
    targets = dict(_targets_of(trusted.targets, None))
    for role in _families(trusted.targets):
        family = trusted.get(role.name)
        if isinstance(family, Targets) and now >= family.expires:
            refusals[role.name] = MetadataRefused(
                Reason.METADATA_EXPIRED, f"{role.name}.json expired on {family.expires:%Y-%m-%d}"
            )
        if isinstance(family, Targets):
            # The top role wins over a family that claims the same path.
            targets = {**dict(_targets_of(family, role)), **targets}
    expires = max([trusted.timestamp.expires, *_extension(trusted.root, files)])
    limits = {
        "root": trusted.root.expires,
        "timestamp": expires,
        "snapshot": trusted.snapshot.expires,
        "targets": trusted.targets.expires,
    }
    families = [trusted[role.name].expires for role in _families(trusted.targets) if trusted.get(role.name) is not None]
    coming = [limit for limit in (*limits.values(), *families) if limit > now]
    keys, threshold = _director(small[DIRECTOR])
    return Released(
        versions=_versions(trusted),
        targets=targets,
        refused=refusals,
        director_keys=keys,
        director_threshold=threshold,
        denied=frozenset(DenyList.parse(small[DENY]).digests),
        lane=freshness.lane,
        issued=freshness.issued,
        expires=expires,
        now=now,
        expired=tuple(name for name, limit in limits.items() if now >= limit),
        holds_until=min(coming, default=now),
    )


def _versions(trusted: TrustedMetadataSet) -> dict[str, int]:
    names = ("root", "timestamp", "snapshot", "targets", *(role.name for role in _families(trusted.targets)))
    return {name: trusted[name].version for name in names if trusted.get(name) is not None}


def _targets_of(targets: Targets, role: DelegatedRole | None) -> Iterator[tuple[str, Target]]:
    for path, file in targets.targets.items():
        # A family may release only paths that were delegated to it.
        if "sha256" in file.hashes and (role is None or role.is_delegated_path(path)):
            custom = file.custom if isinstance(file.custom, dict) else {}
            yield path, Target(f"sha256:{file.hashes['sha256']}", file.length, custom)


def _extension(root: Root, files: Mapping[str, bytes]) -> list[datetime]:
    """Until when a stick said that what it carried (which is no newer than this set) may be used."""
    if _SIDELOAD not in files:
        return []
    with _refusals("timestamp"):
        return [_timestamp_of(root, files[_SIDELOAD]).expires]


def _director(data: bytes) -> tuple[tuple[Key, ...], int]:
    document = DirectorKeys.parse(data)
    try:
        keys = {key.keyid: key for key in (public.key() for public in document.keys)}
    except KeyFileInvalid as e:
        raise MetadataRefused(Reason.METADATA_INVALID, f"{DIRECTOR}: {e.message}") from e
    return tuple(keys.values()), document.threshold


def _trust(anchor: bytes) -> TrustedMetadataSet:
    """An empty trusted set. Expiry is judged by us at the end, so inside it is always the beginning of time."""
    with _refusals("root"):
        trusted = TrustedMetadataSet(anchor, EnvelopeType.METADATA)
    # python-tuf would raise at the first expired role; an expired set must still take part in version comparisons.
    trusted.reference_time = EPOCH
    return trusted


def check_distinct(delegator: Root | Targets) -> None:
    """Refuse a role that lists one key under two ids: its two signatures would count as two people (TUF specification 6.1)."""
    if isinstance(delegator, Root):
        roles: Mapping[str, Role] = delegator.roles
    else:
        roles = (delegator.delegations and delegator.delegations.roles) or {}
    for name, role in roles.items():
        public = [str(delegator.get_key(keyid).keyval) for keyid in role.keyids]
        if len(set(public)) != len(public):
            raise MetadataRefused(Reason.METADATA_INVALID, f"role {name} lists one key twice")


def _root_of(data: bytes) -> Root:
    root = Metadata.from_bytes(data).signed
    assert isinstance(root, Root)  # noqa: S101  (verified before)
    return root


def _timestamp_of(root: Root, data: bytes) -> Timestamp:
    """A timestamp that is signed by the key that root names, whatever its version."""
    with _refusals("timestamp"):
        metadata: Metadata[Timestamp] = Metadata.from_bytes(data)
        if not isinstance(metadata.signed, Timestamp):
            raise RepositoryError(f"expected 'timestamp', got {metadata.signed.type!r}")
        root.verify_delegate("timestamp", metadata.signed_bytes, metadata.signatures)
        return metadata.signed


def _fetched(fetch: Fetch, name: str, cap: int) -> bytes | None:
    data = fetch(name)
    if data is not None and len(data) > cap:
        raise MetadataRefused(Reason.METADATA_INVALID, f"{name}: {len(data)} bytes, more than the {cap} allowed")
    return data


def _needed(fetch: Fetch, name: str, cap: int) -> bytes:
    data = _fetched(fetch, name, cap)
    if data is None:
        raise MetadataIncomplete(f"{name} has not arrived")
    return data


def _matches(length: int, hashes: Mapping[str, str], data: bytes) -> bool:
    return len(data) == length and digest_of(data) == f"sha256:{hashes.get('sha256')}"


def expired(released: Released) -> MetadataRefused:
    """The refusal of a set that is past its time."""
    names = ", ".join(f"{name}.json" for name in released.expired)
    return MetadataRefused(
        Reason.METADATA_EXPIRED,
        f"{names} expired before {released.now:%Y-%m-%d %H:%M} (trusted time)",
        hint="Bring newer metadata: reach the hub, or export a new bundle. If the date is wrong, the clock is.",
    )


@contextlib.contextmanager
def _refusals(role: str) -> Iterator[None]:
    """The seam to python-tuf: its errors become refusals with a reason."""
    try:
        yield
    except EqualVersionNumberError:
        raise
    except BadVersionNumberError as e:
        raise MetadataRefused(Reason.METADATA_ROLLBACK, f"{role}: {e}") from e
    except ExpiredMetadataError as e:
        raise MetadataRefused(Reason.METADATA_EXPIRED, f"{role}: {e}") from e
    except (RepositoryError, ValueError, KeyError, TypeError, DocumentRefused) as e:
        raise MetadataRefused(Reason.METADATA_INVALID, f"{role}: {e}") from e

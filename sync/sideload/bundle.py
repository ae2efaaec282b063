"""Sideload: one file carries a whole update to a spoke without a network, and another brings the receipts back.

The file is a tar (ustar) of an OCI image layout, so `skopeo` reads it as `oci-archive:`. Its head comes before the blobs:

    bundle.json      DSSE by the director: for whom, until when, and what is inside (name, size, digest of every other member)
    directive.json   DSSE by the director
    tuf/<file>       the whole TUF set; its timestamp is signed for the sideload lane and this site
    oci-layout  index.json  blobs/sha256/<hex> ...

It can be encrypted to the site's device key (`encrypted_bundle.py`). `apply_bundle` reads it once, from front to back, in bounded
memory, and checks in this order:

1. Members are plain files with names that a bundle may have, in order; the head is small.
2. The TUF set advances the spoke's own. Older metadata than the spoke's is merged: the newer set stays and decides.
3. The inventory is signed by the director that this set names, is for this spoke, and has not expired; the head is as it says.
4. The directive passes the verifier (steps 1 to 4 there), as one that came over the network.
5. Nothing in it is denied, by the newest deny list that either side knows.
6. Each blob is in the inventory and hashes to its name; what is in the store already is skipped.
7. Nothing of the inventory is missing.

A refusal at 1 to 5 changes nothing but the trust metadata; at 6 and 7 whole blobs stay in the store, where they are harmless,
and a second try goes on from there.
"""

import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, Literal, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from msgspec import Meta

from model_formats.core.document import Document, Value
from model_formats.core.errors import DeviceError
from model_formats.core.files import atomic_file
from model_formats.core.types import AwareDatetime, Digest, Name, digest_of, hex_of, matching
from model_formats.package.image_layout import BlobReader, PackageTampered
from model_formats.package.oci import INDEX, SIGNATURE, Descriptor, canonical, descriptor_json
from model_formats.package.read import closure
from sync.core.types import Reason, SpokeId
from sync.protocol.messages import Directive
from sync.sideload.receipts import Receipt, Receipts, ReceiptsKnown, claimed_spoke, read_receipts, write_receipts
from sync.store import Store
from sync.trust.client import TrustStore
from sync.trust.dsse import seal, unseal
from sync.trust.encrypted_bundle import MAGIC, open_sealed, seal_stream
from sync.trust.errors import TrustRefused
from sync.trust.keys import Key, Signer
from sync.trust.trusted_release import Released
from sync.trust.verifier import verify_directive

__all__ = [
    "Applied",
    "Bundle",
    "BundleIncomplete",
    "BundleRefused",
    "Item",
    "Receipt",
    "Receipts",
    "ReceiptsKnown",
    "apply_bundle",
    "claimed_spoke",
    "contents_of",
    "read_receipts",
    "write_bundle",
    "write_receipts",
]

HEAD = "bundle.json"
DIRECTIVE = "directive.json"
MAX_HEAD_BYTES = 32 << 20
MAX_ITEMS = 4096
MAX_BLOB_BYTES = 8 << 30
_RECORD_BYTES = 512
_NAMES = r"^(directive\.json|oci-layout|index\.json|tuf/[a-z0-9.-]{1,100}\.json|blobs/sha256/[0-9a-f]{64})$"
_CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class BundleRefused(TrustRefused):
    """A sideload file that is not for this spoke, not in order, or not signed as it must be."""

    code = "bundle_refused"
    hint = "Export it again on the hub: `hub bundle export --site SITE --model NAME@VERSION`."


class BundleIncomplete(DeviceError):
    """The sideload file ends too early or cannot be read: copied in part, or pulled out."""

    code = "bundle_incomplete"
    hint = "Copy the file again and apply it once more; what was read is kept."
    retryable = True


class Item(Value):
    """One member of a bundle."""

    name: Annotated[str, matching(_NAMES)]
    size: Annotated[int, Meta(ge=0, le=MAX_BLOB_BYTES)]
    digest: Digest


class Bundle(Document):
    """`bundle.json`: the signed inventory."""

    max_bytes: ClassVar[int] = 2 << 20

    kind: Literal["bundle"] = "bundle"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    zone: Name
    created: AwareDatetime
    expires: AwareDatetime
    generation: Annotated[int, Meta(ge=1)]
    receipts_wanted: bool = True
    items: Annotated[tuple[Item, ...], Meta(max_length=MAX_ITEMS)]

    @property
    def blob_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(item.size for item in self.items if item.name.startswith("blobs/"))


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a bundle brought."""

    bundle: Bundle
    directive: Directive
    envelope: bytes
    """The directive as it was signed, for the journal."""
    released: Released
    new_blobs: int
    new_bytes: int
    merged: bool
    """True: the spoke's own trust metadata was newer and stayed."""


# ---- writing, at the hub ---------------------------------------------------------------------------------------------------


def contents_of(blobs: BlobReader, index: str, signature: str) -> list[Descriptor]:
    """All blobs of one released version: its package and its publisher's bundle."""
    return [*closure(blobs, index), Descriptor(signature, blobs.path(signature).stat().st_size, SIGNATURE)]


def write_bundle(
    out: Path,
    *,
    zone: str,
    tuf: Mapping[str, bytes],
    directive: bytes,
    blobs: BlobReader,
    contents: Sequence[Descriptor],
    director: Signer,
    created: datetime,
    expires: datetime,
    receipts_wanted: bool = True,
    recipient: Key | None = None,
) -> Bundle:
    """Write a bundle, atomically. `tuf` comes from `Repository.files("sideload", site)`, `contents` from `contents_of`.

    `recipient`: encrypt to this device key.
    """
    wish = unseal(directive, [director.public_key], Directive)
    small = {DIRECTIVE: directive, **{f"tuf/{name}": data for name, data in tuf.items()}}
    small |= {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": _index_json(contents)}
    # Variants share their common files; each blob is carried once.
    unique = list({d.digest: d for d in contents}.values())
    bundle = Bundle(
        site=wish.site,
        spoke=wish.spoke,
        zone=zone,
        created=created,
        expires=expires,
        generation=wish.generation,
        receipts_wanted=receipts_wanted,
        items=(
            *(Item(name=name, size=len(data), digest=digest_of(data)) for name, data in small.items()),
            *(Item(name=f"blobs/sha256/{hex_of(d.digest)}", size=d.size, digest=d.digest) for d in unique),
        ),
    )
    # The inventory is the first member: the reader checks it before it takes a byte of a blob.
    members = {HEAD: seal(bundle, director), **small}
    with atomic_file(out, mode=0o600) as file:
        if recipient is None:
            _write_tar(file, members, unique, blobs)
        else:
            # The cipher reads the finished tar as a stream: it lies beside, without a name, for a moment.
            with tempfile.TemporaryFile(dir=out.parent) as clear:
                _write_tar(clear, members, unique, blobs)
                clear.seek(0)
                seal_stream(clear, file, recipient)
    return bundle


def _write_tar(file: BinaryIO, members: Mapping[str, bytes], contents: Iterable[Descriptor], blobs: BlobReader) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            tar.addfile(_info(name, len(data)), BytesIO(data))
        for blob in contents:
            with blobs.path(blob.digest).open("rb") as source:
                tar.addfile(_info(f"blobs/sha256/{hex_of(blob.digest)}", blob.size), source)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


def _index_json(contents: Iterable[Descriptor]) -> bytes:
    indexes = [descriptor_json(d) for d in contents if d.media_type == INDEX]
    return canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": indexes})


# ---- reading, at the spoke -------------------------------------------------------------------------------------------------


def apply_bundle(
    path: Path,
    *,
    me: SpokeId,
    zone: str,
    store: Store,
    trust: TrustStore,
    last_generation: int = 0,
    last_digest: str | None = None,
    private: EllipticCurvePrivateKey | None = None,
    progress: Progress | None = None,
) -> Applied:
    """Check a bundle and put its blobs into the store (see the numbered list above). It opens no socket.

    The caller hands `directive` to its update machine. `private`: the device key, for encrypted bundles. Raises BundleRefused,
    MetadataRefused, DirectiveRefused (with reasons), SealBroken, BundleIncomplete, DiskFull.
    """
    with _opened(path) as file:
        members = _members(_clear(file, private))
        head = _head(members)  # 1
        tuf = {name.removeprefix("tuf/"): data for name, data in head.small.items() if name.startswith("tuf/")}
        # Before the inventory, since only this set says which director may have signed it.
        released = trust.update(tuf.get, lane="sideload")  # 2
        bundle = _verify_bundle(head, released, me, zone)  # 3
        envelope = head.small[DIRECTIVE]
        directive = verify_directive(  # 4
            envelope, released, me, zone, last_generation, released.now, last_digest=last_digest
        )
        if denied := sorted({item.digest for item in bundle.items} & released.denied):  # 5
            raise BundleRefused(Reason.DENIED, f"{path.name} carries {denied[0][:19]}, which is on the deny list")
        new = list(_take_blobs(bundle, head.first, members, store, progress))  # 6
        missing = [i for i in bundle.items if i.name.startswith("blobs/") and not store.has(i.digest)]  # 7
        if missing:
            raise BundleIncomplete(f"{path.name} ends before {missing[0].name} (and {len(missing) - 1} more)")
    merged = tuf.get("timestamp.json") != trust.file("timestamp.json")
    return Applied(bundle, directive, envelope, released, len(new), sum(new), merged)


class _Reader(Protocol):
    def read(self, size: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class _Head:
    inventory: bytes
    small: dict[str, bytes]
    first: _Member | None
    """The first blob, which ended the head."""


class _Pieces:
    """A reader over an iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, bytearray()

    def read(self, size: int) -> bytes:
        while len(self._held) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._held += piece
        found = bytes(self._held[:size])
        del self._held[:size]
        return found


def _clear(file: BinaryIO, private: EllipticCurvePrivateKey | None) -> _Reader:
    sealed = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    if not sealed:
        return file
    if private is None:
        raise BundleRefused(Reason.WRONG_RECIPIENT, "the bundle is encrypted, and the device key was not given")
    return _Pieces(open_sealed(file, private))


def _members(reader: _Reader) -> Iterator[_Member]:
    """The members of a tar, strictly: regular files only, no extensions, nothing that needs interpretation."""
    for _ in range(MAX_ITEMS + 2):
        # Not `tarfile.open`: it follows links, sparse files and extensions, none of which a bundle may have, and it needs to
        # seek.
        record = _exactly(reader, _RECORD_BYTES)
        if not any(record):
            return
        try:
            info = tarfile.TarInfo.frombuf(record, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as e:
            raise BundleRefused(Reason.PACKAGE_INVALID, f"the bundle is not a tar of ours: {e}") from e
        if info.type != tarfile.REGTYPE or not 0 <= info.size <= MAX_BLOB_BYTES:
            raise BundleRefused(Reason.PACKAGE_INVALID, f"{info.name[:100]!r} is not a plain file")
        left = [info.size]
        yield _Member(info.name, info.size, _chunks(reader, left))
        # Whoever took the member may have skipped it (it is in the store already): read on to the next.
        for _rest in _chunks(reader, left):
            pass
        _exactly(reader, -info.size % _RECORD_BYTES)
    raise BundleRefused(Reason.PACKAGE_INVALID, f"the bundle has more than {MAX_ITEMS} members")


def _chunks(reader: _Reader, left: list[int]) -> Iterator[bytes]:
    while left[0]:
        chunk = _exactly(reader, min(left[0], _CHUNK_BYTES))
        left[0] -= len(chunk)
        yield chunk


def _exactly(reader: _Reader, size: int) -> bytes:
    try:
        data = reader.read(size) if size else b""
    except OSError as e:
        raise BundleIncomplete(f"the bundle cannot be read any further: {e.strerror or e}") from e
    if len(data) != size:
        raise BundleIncomplete("the bundle ends in the middle of a member")
    return data


def _head(members: Iterator[_Member]) -> _Head:
    small: dict[str, bytes] = {}
    room = MAX_HEAD_BYTES
    for member in members:
        if member.name.startswith("blobs/"):
            return _split(small, member)
        room -= member.size
        if room < 0:
            raise BundleRefused(Reason.PACKAGE_INVALID, f"the head of the bundle is larger than {MAX_HEAD_BYTES} bytes")
        # Two members of one name: the one that was checked need not be the one that is used.
        if member.name in small:
            raise BundleRefused(Reason.PACKAGE_INVALID, f"{member.name!r} is in the bundle twice")
        small[member.name] = b"".join(member.chunks)
    return _split(small, None)


def _split(small: dict[str, bytes], first: _Member | None) -> _Head:
    for name in (HEAD, DIRECTIVE):
        if name not in small:
            raise BundleRefused(Reason.PACKAGE_INVALID, f"this is not a bundle: it has no {name} before its blobs")
    return _Head(small.pop(HEAD), small, first)


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _verify_bundle(head: _Head, released: Released, me: SpokeId, zone: str) -> Bundle:
    bundle = unseal(head.inventory, released.director_keys, Bundle, released.director_threshold, reason=Reason.PACKAGE_TAMPERED)
    if (bundle.site, bundle.spoke, bundle.zone) != (me.site, me.spoke, zone):
        raise BundleRefused(
            Reason.WRONG_RECIPIENT,
            f"the bundle is for {bundle.site}/{bundle.spoke} in zone {bundle.zone}, this is {me} in {zone}",
        )
    if released.now >= bundle.expires:
        raise BundleRefused(
            Reason.DIRECTIVE_EXPIRED, f"the bundle expired at {_minute(bundle.expires)}; trusted time is {_minute(released.now)}"
        )
    listed = {item.name: item for item in bundle.items}
    if len(listed) != len(bundle.items):
        raise BundleRefused(Reason.PACKAGE_INVALID, "the inventory names a member twice")
    expected = {name for name in listed if not name.startswith("blobs/")}
    if expected != set(head.small):
        odd = sorted(expected ^ set(head.small))[0]
        raise BundleRefused(Reason.PACKAGE_TAMPERED, f"{odd!r} is in the bundle or in its inventory, but not in both")
    for name, data in head.small.items():
        if digest_of(data) != listed[name].digest:
            raise BundleRefused(Reason.PACKAGE_TAMPERED, f"{name} is not what the inventory says")
    return bundle


def _take_blobs(
    bundle: Bundle, first: _Member | None, members: Iterator[_Member], store: Store, progress: Progress | None
) -> Iterator[int]:
    """Put blobs into the store; yields the size of each that was new."""
    listed = {item.name: item for item in bundle.items if item.name.startswith("blobs/")}
    done = 0
    for member in _rest(first, members):
        # Popped, so that a second member of the same name is refused.
        item = listed.pop(member.name, None)
        if item is None or item.size != member.size or member.name != f"blobs/sha256/{hex_of(item.digest)}":
            raise BundleRefused(Reason.PACKAGE_TAMPERED, f"{member.name[:100]!r} is not in the inventory, or not like that")
        if not store.has(item.digest):
            _keep(store, item, member)
            yield item.size
        done += item.size
        if progress:
            progress(done, bundle.blob_bytes)


def _keep(store: Store, item: Item, member: _Member) -> None:
    try:
        store.put_stream(item.digest, item.size, member.chunks)
    except PackageTampered as e:
        raise BundleRefused(Reason.PACKAGE_TAMPERED, f"{member.name}: {e.message}") from e


def _rest(first: _Member | None, members: Iterator[_Member]) -> Iterator[_Member]:
    if first is not None:
        yield first
        yield from members


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as e:
        raise BundleIncomplete(f"{path} cannot be read: {e.strerror or e}", hint="Is the path right, and the stick in?") from e

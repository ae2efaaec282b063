"""The spoke's side of TUF: one trusted set on disk, updated by any metadata that arrives over any transport.

The rules are python-tuf's `TrustedMetadataSet` (signatures, thresholds, versions, hashes, caps); around them is a shell of
our own, since the reference updater fetches from a server by itself, writes its files without fsync, uses the machine's clock and
does not return an expired set. Here:

 - `fetch` is a callable: the mirror of a topic, a folder, an HTTPS client, a bundle. None means that there is no such file.
 - The trusted set is one file, replaced at once: after a power cut it is the old one or the new one, and it verifies whole.
 - It is verified whole from the anchor at every start, so that a delegated role kept from an older delegator must please the
   current one too, and no file is trusted only because it is on the disk.
 - Expiry is judged at the end, for all roles together, at trusted time (`freshness`). An expired set takes part in every
   comparison of versions, still tells what was released, and allows nothing new. Fetching newer metadata is always possible.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from msgspec import field

from model_formats.core.document import Document
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime, Digest, digest_of
from sync.core.clock import Clock
from sync.core.types import SpokeId
from sync.store import disk_errors
from sync.trust.documents import Lane
from sync.trust.errors import MetadataIncomplete
from sync.trust.freshness import EPOCH, correction, trusted_now
from sync.trust.trusted_release import Released
from sync.trust.workflow import Fetch, advance, after_roots, expired, nothing, walk_roots

__all__ = ["Fetch", "TrustStore"]


class TrustedState(Document):
    """`trusted.json`: the trusted set and what is known about time."""

    max_bytes: ClassVar[int] = 64 << 20

    kind: Literal["trusted"] = "trusted"
    schema_: Literal[1] = 1
    anchor: Digest
    files: dict[str, str] = field(default_factory=dict)
    """Metadata by file name, as text."""
    floor: AwareDatetime = EPOCH
    correction_s: float = 0.0


class TrustStore:
    """One spoke's trust: `folder/trusted.json`, anchored in the root metadata it was enrolled with."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        anchor: bytes,
        *,
        lane: Lane = "online",
        site: str | None = None,
        built: datetime = EPOCH,
    ) -> None:
        """`lane`: how this spoke usually hears from its hub. `built`: a time that has surely passed (enrolment, say)."""
        self._path = folder / "trusted.json"
        self._clock, self._anchor, self._lane, self._site, self._built = clock, anchor, lane, site, built
        self._state = self._read()
        self._judged: Released | None = None

    def now(self) -> datetime:
        """Trusted time."""
        return trusted_now(self._clock.now(), max(self._built, self._state.floor), self._state.correction_s)

    def update(self, fetch: Fetch, *, lane: Lane | None = None) -> Released:
        """Move the trusted set forward with what `fetch` offers, and keep it.

        Raises MetadataRefused (with reason) when anything breaks a rule, or when the newest set there is has expired;
        MetadataIncomplete when a file is missing. In both cases the trusted set is as it was, except that verified new root
        metadata is kept: it only ever takes trust away; and that a first set is kept though it has expired: it allows nothing,
        but names the director, whose answer sets a clock right that runs years ahead from the first day.
        """
        held = {name: text.encode() for name, text in self._state.files.items()}
        roots = walk_roots(self._anchor, held, fetch)
        if len(roots) > sum(name.endswith(".root.json") for name in held):
            held = after_roots(held, roots)
            # New roots are kept even if the rest is refused: a root can only take trust away from stolen keys.
            self._write(held, self._state.floor if "timestamp.json" in held else EPOCH)
        checked = advance(roots, held, fetch, lane or self._lane, self._site, self.now())
        if checked.released.expired:
            if "timestamp.json" not in held:
                self._write(checked.files, self._state.floor)
            raise expired(checked.released)
        self._write(checked.files, max(self._state.floor, checked.issued))
        return checked.released

    def released(self) -> Released:
        """What is trusted now, without asking anybody. It may be `expired`. Raises MetadataIncomplete before the first update."""
        now = self.now()
        # Verifying the set costs milliseconds of signature checks, and this is asked at every turn.
        found = self._judged and self._judged.at(now)
        if not found:
            held = {name: text.encode() for name, text in self._state.files.items()}
            if "timestamp.json" not in held:
                raise MetadataIncomplete("no trust metadata has arrived yet")
            roots = walk_roots(self._anchor, held, nothing)
            found = advance(roots, held, nothing, self._lane, self._site, now).released
            self._judged = found
        return found

    def file(self, name: str) -> bytes | None:
        """A file of the trusted set, as it was signed."""
        text = self._state.files.get(name)
        return None if text is None else text.encode()

    def correct_clock(self, answer: bytes, me: SpokeId, nonce: str) -> float:
        """Take the hub's signed answer to our nonce; returns the seconds by which the wall clock is wrong. Raises a refusal."""
        wall, keys = self._clock.now(), self.released().director_keys
        found = correction(answer, keys, me, nonce, wall, max(self._built, self._state.floor))
        self._keep(self._state.replace(correction_s=found))
        return found

    def witness(self, signed: datetime) -> None:
        """Raise the floor of time to a moment that the director has signed (a directive's `issued`).

        Never beyond the expiry of what the timestamp key vouches for, so that a stolen director key cannot end all time.
        """
        # A floor in the far future would make every timestamp look expired, for good.
        signed = min(signed, self.released().expires)
        if signed > self._state.floor:
            self._keep(self._state.replace(floor=signed))

    def _read(self) -> TrustedState:
        fresh = TrustedState(anchor=digest_of(self._anchor))
        if not self._path.exists():
            return fresh
        # Another anchor means that the spoke was enrolled anew; what the old hub signed is nothing here.
        state = TrustedState.parse(self._path.read_bytes())
        return state if state.anchor == fresh.anchor else fresh

    def _write(self, files: Mapping[str, bytes], floor: datetime) -> None:
        texts = {name: data.decode() for name, data in files.items()}
        self._keep(self._state.replace(files=texts, floor=floor))

    def _keep(self, state: TrustedState) -> None:
        if state != self._state or not self._path.exists():
            with disk_errors(self._path):
                atomic_write(self._path, state.canonical(), mode=0o600)
        self._state, self._judged = state, None

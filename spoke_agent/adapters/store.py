"""The adapters of a site: each in a folder of its own, with a signed record of how it was made. They never leave.

adapters/<name>/<hex digest>.onnx_adapter   what ONNX Runtime loads; a fitted whole model is <hex digest>.onnx
adapters/<name>/head.npz                    the same numbers, for the next gate (heads only)
adapters/<name>/record.json                 AdapterRecord in a DSSE envelope of the device key
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from model_formats.core.array_file import read_arrays, write_arrays
from model_formats.core.document import Document, Value
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime, Digest, Name, digest_of_file
from model_formats.documents.package_spec import AdapterPoint
from model_formats.package.adapter import Head, write_adapter
from spoke_agent.adapters.errors import AdapterUnknown
from spoke_agent.adapters.gate import GateVerdict
from spoke_agent.site.slots import AdapterSlot
from sync.trust.dsse import seal, unseal
from sync.trust.keys import Key, Signer

__all__ = ["AdapterRecord", "AdapterStore", "Retired", "ShadowComparison", "StoredAdapter"]


class ShadowComparison(Value):
    """Before it answered a caller: how many rows of callers it saw, and on how many it differs from the hub's model."""

    rows: Annotated[int, Meta(ge=0)] = 0
    changed: Annotated[int, Meta(ge=0)] = 0


class AdapterRecord(Document):
    """How an adapter was made: from which head, on which rows, at whose request. Stays at the site."""

    kind: Literal["adapter-record"] = "adapter-record"
    schema_: Literal[1] = 1
    name: Name
    model: Name
    version: Annotated[int, Meta(ge=1)]
    index: Digest
    base: Digest
    """The model file it was fitted on, and works on."""
    file: Digest
    created: AwareDatetime
    origin: Literal["operator", "schedule", "drift", "new_base", "erasure"]
    method: Literal["head", "lora", "full"] = "head"
    """What was fitted: the head alone, or the whole model (by low-rank changes, or freely)."""
    rows: int
    per_class: tuple[int, ...]
    first_batch: int
    last_batch: int
    """The stored batches it was fitted on: when one is erased, so is what was made from it."""
    penalty: float
    gate: GateVerdict
    shadow: ShadowComparison = ShadowComparison()

    @property
    def slot(self) -> AdapterSlot:
        """As slots.json names it."""
        return AdapterSlot(name=self.name, file=self.file, base=self.base)


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter in the store. `trusted`: its record is signed by this device and its file is the one recorded."""

    record: AdapterRecord
    folder: Path
    trusted: bool

    @property
    def file(self) -> Path:
        """The adapter file."""
        return self.folder / _named(self.record)

    def head(self) -> Head:
        """The head, for comparing with the next one. Whole models have none."""
        found = read_arrays(self.folder / "head.npz")
        return Head(found["weight"], found["bias"])


class AdapterStore:
    """`home/adapters`. `signer` signs new records, `key` checks old ones."""

    def __init__(self, folder: Path, *, signer: Signer, key: Key) -> None:
        self.folder, self._signer, self._key = folder, signer, key

    def next_name(self, model: str, version: int) -> str:
        """A name that is free: `digits-1-a1`, `digits-1-a2` ..."""
        stem = f"{model[:40].rstrip('-')}-{version}"
        number = 1
        while (self.folder / f"{stem}-a{number}").exists():
            number += 1
        return f"{stem}-a{number}"

    def add(self, name: str, point: AdapterPoint, head: Head, describe: Callable[[str], AdapterRecord]) -> StoredAdapter:
        """Write an adapter; `describe(file digest)` gives its record. All or nothing: the folder appears when it is whole."""

        def write(folder: Path) -> Path:
            write_adapter(folder / "adapter", point, head.weight, head.bias)
            write_arrays(folder / "head.npz", {"weight": head.weight, "bias": head.bias})
            return folder / "adapter"

        return self._add(name, write, describe)

    def add_model(self, name: str, file: Path, describe: Callable[[str], AdapterRecord]) -> StoredAdapter:
        """The same for a whole fitted model, of which a copy is taken."""
        return self._add(name, lambda folder: Path(shutil.copyfile(file, folder / "model")), describe)

    def _add(self, name: str, write: Callable[[Path], Path], describe: Callable[[str], AdapterRecord]) -> StoredAdapter:
        beside = self.folder / f".{name}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True, mode=0o700)
        try:
            file = write(beside)
            record = describe(digest_of_file(file))
            file.rename(beside / _named(record))
            atomic_write(beside / "record.json", seal(record, self._signer), mode=0o600)
            beside.rename(self.folder / name)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        return StoredAdapter(record, self.folder / name, trusted=True)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private folder beside the adapters, removed at the end; `remove_leftovers` removes what a crash left."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as work:
            yield Path(work)

    def remove_leftovers(self) -> None:
        """Remove what is not an adapter. A fit that is going on loses its work and fails: its rows may have been erased."""
        for path in self.folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    def all(self, model: str | None = None) -> list[StoredAdapter]:
        """All stored adapters, oldest first."""
        folders = sorted(self.folder.glob("*/record.json")) if self.folder.is_dir() else []
        found = [self._read(path.parent) for path in folders if not path.parent.name.startswith(".")]
        return sorted((k for k in found if model in (None, k.record.model)), key=lambda k: (k.record.created, k.record.name))

    def get(self, name: str) -> StoredAdapter:
        """One adapter. Raises AdapterUnknown, EnvelopeRefused."""
        if not any(k.record.name == name for k in self.all()):
            raise AdapterUnknown(f"{name!r}: no such adapter here")
        return self._read(self.folder / name)

    def erase(self, name: str) -> None:
        """Remove an adapter and its record. Raises AdapterUnknown."""
        shutil.rmtree(self.get(name).folder)

    def made_from(self, batches: range) -> list[StoredAdapter]:
        """Adapters that were fitted on any of these batches."""
        return [k for k in self.all() if k.record.first_batch < batches.stop and k.record.last_batch >= batches.start]

    def _read(self, folder: Path) -> StoredAdapter:
        record = unseal((folder / "record.json").read_bytes(), [self._key], AdapterRecord)
        kept = StoredAdapter(record, folder, trusted=False)
        whole = record.name == folder.name and kept.file.is_file() and digest_of_file(kept.file) == record.file
        return StoredAdapter(record, folder, trusted=whole)


def _named(record: AdapterRecord) -> str:
    """By its digest; the ending tells an adapter from a whole model."""
    return record.file.removeprefix("sha256:") + (".onnx_adapter" if record.method == "head" else ".onnx")


@dataclass(frozen=True, slots=True)
class Retired:
    """An adapter that was erased, and whether it answered by default."""

    name: str
    model: str
    answered: bool

"""From a slot to something that runs: verify, choose the engine, check golden vectors, measure. Slow, so on a thread of its own.

In order:
1. the package opens, and is of the model and version that the slot says;
2. there is memory for it;
3. every file of the variant hashes to its digest, the one that will be mapped by our own hash;
4. the engine and its mode: the fastest that gives the golden outputs, measured in a child and stored (`engine_choice.py`),
   so that the serving process never carries an engine it does not use, nor falls with one that this CPU cannot run;
5. golden vectors in this very session;
6. the cost of a row and of a batch, which decides placement and batch size.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from msgspec import Struct, field

from model_formats.core.cpu_class import CpuClass, this_class
from model_formats.core.errors import DeviceError, RefusedError, SpokeshaveError
from model_formats.core.runtime import Array, Engine, EngineMissing, HeadAdapter, LoadFailed, Session
from model_formats.core.types import digest_of_file, hex_of
from model_formats.documents.package_spec import VariantSpec
from model_formats.package import BlobReader, Package, PackageIncomplete, PackageInvalid, PackageTampered, open_package
from model_formats.package.golden import Golden, GoldenMismatch, GoldenResult
from spoke_agent.server.metrics import rss_bytes
from spoke_agent.server.models.batcher import Cost, Placement
from spoke_agent.server.models.contract_check import Signature
from spoke_agent.server.models.engine_choice import open_right, usable_engines
from spoke_agent.server.settings import ServeSettings
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.memory import free_memory_bytes
from spoke_agent.site.slots import AdapterSlot, Slot
from sync.core.types import Reason

__all__ = [
    "LoadedVersion",
    "MemoryRefused",
    "WrongModel",
    "load_adapter",
    "load_version",
    "measure",
    "reason_of",
    "stored_adapters",
]

_PROBE_ROWS = 32
_PROBE_S = 0.05
_PROBES = 9
_NAMED_ADAPTERS = 16


class MemoryRefused(DeviceError):
    """Loading would leave the machine, or this process, without memory."""

    code = "memory_refused"
    hint = "Serve fewer models here, raise the ceiling, or choose a smaller variant."


class WrongModel(RefusedError):
    """The slot names one model version, the package is another."""

    code = "slot_wrong_model"
    http = 422
    hint = "slots.json was written by hand or is damaged; let the agent write it."


class LoadedVersion(Struct):
    """A version that is ready to run, and what was measured on the way."""

    model: str
    slot: Slot
    package: Package
    file: str
    """Digest of the model file, hashed here."""
    session: Session
    cpu_class: CpuClass
    signature: Signature
    golden: GoldenResult
    cost: Cost
    placement: Placement
    latency_ms: float
    row_ms_batch: float
    load_ms: float
    rss_mb: float
    best_for_adapters: bool
    """Whether loading it again for an adapter's sake would change nothing: it can switch heads, or no engine here can."""
    adapters: dict[str, HeadAdapter] = field(default_factory=dict)
    """By digest of their file."""

    @property
    def engine(self) -> Engine:
        """Which engine runs it."""
        return self.session.engine


def load_version(
    settings: ServeSettings,
    blobs: BlobReader,
    model: str,
    slot: Slot,
    *,
    adaptable: bool,
    free_memory: Callable[[], int | None] = free_memory_bytes,
) -> LoadedVersion:
    """Do all of the above. `adaptable` prefers ONNX Runtime, the engine that can switch heads; `free_memory` is in bytes.

    Raises what `reason_of` knows; nothing is changed then.
    """
    started, rss = time.perf_counter(), rss_bytes()
    # 1
    package = open_package(blobs, slot.index)
    if (package.spec.model, package.spec.version) != (model, slot.version):
        raise WrongModel(f"slot {model}@{slot.version}: the package is {package.spec.model}@{package.spec.version}")
    variant = package.variant(slot.variant)
    # 2
    _room_for(settings, package, variant, free_memory())
    # 3
    package.check(slot.variant)
    file = digest_of_file(package.path(variant.main))
    if file != package.files[variant.main].digest:
        raise PackageTampered(f"{variant.main}: its bytes are {file}")
    # 4, 5
    opened = open_right(settings, _openable(settings, package, variant), file, package, variant, adaptable=adaptable)
    session, engine = opened.session, opened.session.engine
    # 6
    cost, latency_ms, row_ms = measure(session, package.golden(), Signature.of(package.contract))
    return LoadedVersion(
        model=model,
        slot=slot,
        package=package,
        file=file,
        session=session,
        cpu_class=this_class(),
        signature=Signature.of(package.contract),
        golden=opened.golden,
        cost=cost,
        placement="loop" if latency_ms < settings.loop_ms else "thread",
        latency_ms=latency_ms,
        row_ms_batch=row_ms,
        load_ms=(time.perf_counter() - started) * 1e3,
        rss_mb=max(0.0, (rss_bytes() - rss) / 2**20),
        best_for_adapters=adaptable or engine == "onnxruntime" or "onnxruntime" not in usable_engines(settings, variant),
    )


def load_adapter(folder: Path, loaded: LoadedVersion, slot: AdapterSlot) -> HeadAdapter:
    """The adapter file with the slot's digest, wherever it lies in the folder.

    Raises PackageIncomplete, PackageTampered (fitted on another base), AdapterRefused.
    """
    if slot.base != loaded.file:
        raise PackageTampered(f"adapter {slot.name}: fitted on {slot.base}, but {loaded.file} is served")
    if slot.file not in loaded.adapters:
        path = find_adapter(folder, slot.file)
        loaded.adapters[slot.file] = loaded.session.load_adapter(str(path), slot.name)
    return loaded.adapters[slot.file]


def stored_adapters(home: SpokeHome, loaded: LoadedVersion) -> dict[str, HeadAdapter]:
    """The adapters that callers may name: heads fitted on this very file, by a record that this device signed. The newest ones.

    A whole fitted model costs the memory of a model: only the default one is loaded.
    """
    if not any(home.adapters.glob("*/record.json")):
        return {}
    from spoke_agent.adapters.store import AdapterStore  # late: a site without adapters needs neither this nor its cryptography
    from sync.trust.keys import load_signer

    found: dict[str, HeadAdapter] = {}
    with contextlib.suppress(SpokeshaveError, OSError, RuntimeError):  # adapters whose records cannot be verified are not offered
        signer = load_signer(home.identity / "device.key")
        adapter_store = AdapterStore(home.adapters, signer=signer, key=signer.public_key)
        records = [kept.record for kept in adapter_store.all(loaded.model) if kept.trusted]
        heads = [r for r in records if r.gate.passed and r.base == loaded.file and r.method == "head"]
        for record in heads[-_NAMED_ADAPTERS:]:
            found[record.name] = load_adapter(home.adapters, loaded, record.slot)
    return found


def find_adapter(folder: Path, digest: str) -> Path:
    """A file by its digest: by name where it is in the name, else by hashing. Raises PackageIncomplete."""
    files = [p for p in folder.rglob("*") if p.is_file()] if folder.is_dir() else []
    files.sort(key=lambda p: hex_of(digest) not in p.name)
    for path in files:
        if digest_of_file(path) == digest:
            return path
    raise PackageIncomplete(f"adapter {digest}: no such file in {folder.name}/")


def measure(session: Session, golden: Golden, signature: Signature) -> tuple[Cost, float, float]:
    """Cost model, milliseconds for one row, and milliseconds per row in a batch of 32, each of the quickest of some runs.

    What else the machine does only adds to a run. By the median, a version that was loaded in a busy moment looked three times
    slower than the champion and was rolled back.
    """
    outputs = signature.output_names
    if not signature.batched:
        whole = _quickest_s(session, golden.inputs, outputs)
        return Cost(0.0, whole), whole * 1e3, whole * 1e3
    one = _quickest_s(session, _rows(golden.inputs, 1), outputs)
    many = _quickest_s(session, _rows(golden.inputs, _PROBE_ROWS), outputs)
    row = max((many - one) / (_PROBE_ROWS - 1), many / _PROBE_ROWS / 4)
    return Cost(max(one - row, 0.0), row), one * 1e3, many / _PROBE_ROWS * 1e3


def reason_of(error: Exception) -> Reason:
    """The word of the closed list for a slot that could not be loaded."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return Reason.LOAD_FAILED


_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (PackageTampered, Reason.PACKAGE_TAMPERED),
    (PackageInvalid, Reason.PACKAGE_INVALID),
    (PackageIncomplete, Reason.PACKAGE_INVALID),
    (WrongModel, Reason.PACKAGE_INVALID),
    (MemoryRefused, Reason.NO_MEMORY),
    (MemoryError, Reason.NO_MEMORY),
    (EngineMissing, Reason.ENGINE_MISSING),
    (GoldenMismatch, Reason.GOLDEN_MISMATCH),
    (LoadFailed, Reason.LOAD_FAILED),
)


def _rows(inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    return {name: np.ascontiguousarray(np.resize(array, (rows, *array.shape[1:]))) for name, array in inputs.items()}


def _quickest_s(session: Session, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> float:
    times: list[float] = []
    end = time.perf_counter() + _PROBE_S
    while len(times) < 3 or (len(times) < _PROBES and time.perf_counter() < end):
        started = time.perf_counter()
        session.run(inputs, outputs)
        times.append(time.perf_counter() - started)
    return min(times)


def _room_for(settings: ServeSettings, package: Package, variant: VariantSpec, free: int | None) -> None:
    size = sum(package.files[name].size for name in variant.files)
    needed = max(variant.requires.memory_mb * 2**20, 2 * size)
    if settings.memory_mb is not None and rss_bytes() + needed > settings.memory_mb * 2**20:
        raise MemoryRefused(
            f"{variant.main}: needs about {needed >> 20} MB; {rss_bytes() >> 20} of {settings.memory_mb} MB are in use already"
        )
    if free is not None and needed > free:
        raise MemoryRefused(f"{variant.main}: needs about {needed >> 20} MB; there are {free >> 20} MB left for this process")


def _openable(settings: ServeSettings, package: Package, variant: VariantSpec) -> Path:
    """The main file. A variant of several files, or one an engine knows by its ending, is linked under its own names first."""
    main = package.path(variant.main)
    if len(variant.files) == 1 and variant.format == "onnx" and "openvino" not in usable_engines(settings, variant):
        return main
    folder = settings.folder.run / "models" / hex_of(package.files[variant.main].digest)[:16]
    for name in variant.files:
        link = folder / Path(name).name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(package.path(name))
    return folder / Path(variant.main).name

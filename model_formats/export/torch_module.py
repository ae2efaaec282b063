"""A torch module: in memory, or by `package.module:factory` where factory() gives the module."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import FeatureContract
from model_formats.export.graph import refuse_unsafe, save_graph, strip
from model_formats.export.onnx_file import conform
from model_formats.export.source import ExportFailed, SourceRefused

if TYPE_CHECKING:
    import torch

__all__ = ["TorchModule", "export_program", "load_factory", "quiet", "run_module"]


class TorchModule:
    """Takes the contract's inputs as positional arguments, in order; returns a tensor, or a tuple in the order of the outputs."""

    format = "torch"

    def __init__(self, module: "torch.nn.Module", example: Mapping[str, Array]) -> None:
        self.module = module.eval()
        self.example = example
        """At least two rows of each input (one row would fix the batch dimension)."""

    def export(self, path: Path, contract: FeatureContract) -> None:
        """See `ModelSource.export`."""
        import torch

        arguments = _arguments(self.example, contract)
        free = {i.name: [n for n, d in enumerate(i.shape) if d == -1] for i in contract.inputs}
        shapes = tuple(dict.fromkeys(free[i.name], torch.export.Dim.DYNAMIC) for i in contract.inputs)
        with quiet(), torch.inference_mode(mode=False):
            try:
                program = torch.export.export(self.module, arguments, dynamic_shapes=shapes)
            except Exception as e:  # torch.export raises many kinds
                raise ExportFailed(f"torch cannot export {type(self.module).__name__}: {_first_line(e)}") from e
        export_program(program, path, contract)

    def reference(self, inputs: Mapping[str, Array], contract: FeatureContract) -> dict[str, Array] | None:
        """Outputs of the module itself."""
        return run_module(self.module, inputs, contract)


def load_factory(text: str) -> "torch.nn.Module":
    """The module that `package.module:factory` makes. Raises SourceRefused."""
    module, _, attribute = text.partition(":")
    try:
        found: torch.nn.Module = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as e:
        raise SourceRefused(f"{text!r}: no such factory: {e}", hint="Write it as package.module:factory.") from e
    return found


def run_module(module: "torch.nn.Module", inputs: Mapping[str, Array], contract: FeatureContract) -> dict[str, Array]:
    """Outputs by the contract's names."""
    import torch

    with torch.inference_mode():
        found = module(*_arguments(inputs, contract))
    parts = list(found.values()) if isinstance(found, Mapping) else found if isinstance(found, tuple | list) else [found]
    return {o.name: t.numpy() for o, t in zip(contract.outputs, parts, strict=False)}


def export_program(program: Any, path: Path, contract: FeatureContract) -> None:
    """Write a `torch.export` program as one ONNX file. Raises ExportFailed."""
    import torch

    with quiet():
        try:
            onnx_program = torch.onnx.export(
                program,
                input_names=[f"argument.{n}" for n in range(len(contract.inputs))],
                output_names=[f"result.{n}" for n in range(len(contract.outputs))],
                dynamo=True,
                verbose=False,
            )
        except Exception as e:  # torch.onnx raises many kinds
            raise ExportFailed(f"torch cannot write ONNX: {_first_line(e)}") from e
    model = onnx_program.model_proto
    refuse_unsafe(model, "the exported graph")
    conform(model, contract)
    strip(model)
    save_graph(model, path)


def _arguments(inputs: Mapping[str, Array], contract: FeatureContract) -> tuple[Any, ...]:
    import torch

    missing = [i.name for i in contract.inputs if i.name not in inputs]
    if missing:
        raise ExportFailed(f"no rows for the contract's inputs {missing}; the rows have {sorted(inputs)}")
    return tuple(torch.tensor(inputs[i.name]) for i in contract.inputs)  # a copy: rows from a file are read-only


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's exporter prints and warns a great deal that no author can act on."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

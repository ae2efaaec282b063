"""Opens any source of a model: a path, or `package.module:factory`."""

from collections.abc import Mapping
from pathlib import Path

from model_formats.core.runtime import Array
from model_formats.export.exported_program import ExportedProgram
from model_formats.export.hf_folder import HfFolder
from model_formats.export.onnx_file import OnnxFile
from model_formats.export.source import ModelSource, SourceRefused
from model_formats.export.torch_module import TorchModule, load_factory

__all__ = ["open_source"]


def open_source(text: str, example: Mapping[str, Array]) -> ModelSource:
    """`model.onnx`, `program.pt2`, a Hugging Face folder, or `module:factory` (traced on the first two rows of `example`).

    Raises SourceRefused with the four forms when it is none of them.
    """
    path = Path(text)
    if path.is_dir():
        return HfFolder(path)
    if path.suffix == ".onnx":
        return OnnxFile(path)
    if path.suffix == ".pt2":
        return ExportedProgram(path)
    if ":" in text and not path.exists():
        return TorchModule(load_factory(text), {n: a[:2] for n, a in example.items()})
    raise SourceRefused(
        f"{text!r} is no model source", hint="Give a .onnx file, a .pt2 file, a Hugging Face folder, or package.module:factory."
    )

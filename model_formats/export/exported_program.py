"""A `torch.export` program (`.pt2`). It is an archive of graph and weights; nothing in it is unpickled by us."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import FeatureContract
from model_formats.export.source import SourceRefused
from model_formats.export.torch_module import export_program, quiet, run_module

__all__ = ["ExportedProgram"]


class ExportedProgram:
    """`file` must have been exported with a dynamic first dimension (`torch.export.Dim.DYNAMIC`)."""

    format = "exported-program"

    def __init__(self, file: Path) -> None:
        self.file = file

    def export(self, path: Path, contract: FeatureContract) -> None:
        """See `ModelSource.export`."""
        export_program(self._load(), path, contract)

    def reference(self, inputs: Mapping[str, Array], contract: FeatureContract) -> dict[str, Array] | None:
        """Outputs of the program itself."""
        return run_module(self._load().module(), inputs, contract)

    def _load(self) -> Any:
        import torch

        if not self.file.is_file() or not zipfile.is_zipfile(self.file) or not _is_program(self.file):
            raise SourceRefused(
                f"{self.file.name}: not a torch.export program", hint="Write it with torch.export.save(program, path)."
            )
        with quiet():
            try:
                return torch.export.load(self.file)
            except Exception as e:  # torch raises many kinds
                raise SourceRefused(f"{self.file.name}: torch cannot load it: {str(e)[:200]}") from e


def _is_program(file: Path) -> bool:
    """A plain `torch.save` archive holds a `data.pkl` and no exported graph."""
    with zipfile.ZipFile(file) as archive:
        return any("models/" in name and name.endswith(".json") for name in archive.namelist())

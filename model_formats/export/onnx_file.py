"""An ONNX file from elsewhere, with or without external data. Nothing in it is trusted: paths, sizes, operators, weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_formats.core.runtime import Array
from model_formats.documents.feature_contract import FeatureContract
from model_formats.export.graph import refuse_unsafe, rename, save_graph, strip
from model_formats.export.source import ExportFailed, SourceRefused

__all__ = ["MAX_BYTES", "OnnxFile", "conform"]

MAX_BYTES = 2_000_000_000
"""Of the one file that is written: protobuf ends at 2 GiB."""


class OnnxFile:
    """`file` may refer to external data beside it, inside its own folder, and nowhere else."""

    format = "onnx"

    def __init__(self, file: Path) -> None:
        self.file = file

    def export(self, path: Path, contract: FeatureContract) -> None:
        """See `ModelSource.export`."""
        model = self._load()
        refuse_unsafe(model, self.file.name)
        conform(model, contract)
        strip(model)
        save_graph(model, path)

    def reference(self, inputs: Mapping[str, Array], contract: FeatureContract) -> dict[str, Array] | None:
        """None: the file is its own reference."""
        return None

    def _load(self) -> Any:
        import onnx

        if not self.file.is_file() or self.file.is_symlink():
            raise SourceRefused(f"{self.file}: no such file, or a link")
        with self.file.open("rb") as start:
            if start.read(2) in (b"\x80\x02", b"\x80\x04", b"PK"):
                raise SourceRefused(f"{self.file.name}: a pickle or an archive, not ONNX; it was not opened")
        if self.file.stat().st_size > MAX_BYTES:
            raise SourceRefused(f"{self.file.name}: larger than {MAX_BYTES} bytes; move the weights to external data")
        bare = _load_bare(self.file)
        for tensor in onnx.external_data_helper._get_all_tensors(bare):
            if onnx.external_data_helper.uses_external_data(tensor):
                self._check_external(tensor)
        onnx.external_data_helper.load_external_data_for_model(bare, str(self.file.parent))
        return bare

    def _check_external(self, tensor: Any) -> None:
        entry = {e.key: e.value for e in tensor.external_data}
        folder, location = self.file.parent.resolve(), entry.get("location", "")
        target = folder / location
        if not location or Path(location).is_absolute() or ".." in Path(location).parts or _has_link(folder, target):
            raise SourceRefused(f"{self.file.name}: weight {tensor.name!r} lies in {location!r}, outside the model's own folder")
        if not target.is_file():
            raise SourceRefused(f"{self.file.name}: external data {location!r} is missing")
        end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
        if end > target.stat().st_size or target.stat().st_size > MAX_BYTES:
            raise SourceRefused(
                f"{self.file.name}: weight {tensor.name!r} goes beyond the end of {location!r}, or that is too large"
            )


def conform(model: Any, contract: FeatureContract) -> None:
    """Give the graph the contract's names (matched by name, else by position) and a batch dimension of its own.

    Raises ExportFailed.
    """
    constant = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constant]
    for i in [i for i in model.graph.input if i.name in constant]:
        model.graph.input.remove(i)
    if len(inputs) != len(contract.inputs) or len(model.graph.output) < len(contract.outputs):
        told = [i.name for i in inputs], [o.name for o in model.graph.output]
        raise ExportFailed(
            f"the graph has inputs and outputs {told}, the contract {len(contract.inputs)} and {len(contract.outputs)}"
        )
    _match(model, inputs, [t.name for t in contract.inputs])
    _match(model, list(model.graph.output), [t.name for t in contract.outputs])
    wanted = {t.name for t in contract.outputs}
    for extra in [o for o in model.graph.output if o.name not in wanted]:
        model.graph.output.remove(extra)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _match(model: Any, values: list[Any], names: list[str]) -> None:
    free = [v.name for v in values if v.name not in names]
    for name in names:
        if all(v.name != name for v in values):
            rename(model, free.pop(0), name)


def _load_bare(file: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError) as e:
        raise SourceRefused(f"{file.name}: not a readable ONNX file: {str(e)[:200]}") from e


def _has_link(folder: Path, target: Path) -> bool:
    inside = target.relative_to(folder)
    return any((folder / Path(*inside.parts[: i + 1])).is_symlink() for i in range(len(inside.parts)))

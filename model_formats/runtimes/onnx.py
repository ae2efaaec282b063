"""ONNX Runtime: one thread a session, no spinning, adapters by its own adapter format.

Source: onnxruntime's Python API (`SessionOptions`, `RunOptions.add_active_adapter`, `LoraAdapter`, `AdapterFormat`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from model_formats.core.engine_imports import ORT_LOG_NOTHING, import_onnxruntime
from model_formats.core.runtime import (
    AdapterRefused,
    Array,
    Engine,
    HeadAdapter,
    InputRefused,
    LoadFailed,
    Mode,
    RunFailed,
    TensorSpec,
)

__all__ = ["OnnxAdapter", "OnnxSession", "WholeModel", "open_onnx"]

MAX_ADAPTER_BYTES = 64 << 20
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


_CALLERS_FAULT = ("InvalidArgument", "ValueError", "KeyError")
"""What onnxruntime raises for inputs that do not fit: its own status, and the checks of its Python side."""


class OnnxAdapter(Struct, frozen=True):
    """A loaded adapter, with the run options that activate it."""

    name: str
    options: Any
    adapter: Any
    """Kept alive: the run options only point to it."""


class WholeModel(Struct, frozen=True):
    """A model fitted from another and answering in its place: the adapter of a site that fits more than heads."""

    name: str
    session: "OnnxSession"


class OnnxSession:
    """`Session` on ONNX Runtime. Safe to run from several threads."""

    engine: Engine = "onnxruntime"

    def __init__(self, session: Any, *, threads: int = 1, mode: Mode = "fast") -> None:
        self._session, self._threads, self.mode = session, threads, mode
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(node) for node in session.get_inputs())
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(node) for node in session.get_outputs())
        self._names = [o.name for o in self.outputs]

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None, adapter: HeadAdapter | None = None
    ) -> list[Array]:
        """Run one batch; see `Session.run`."""
        options = None
        if adapter is not None:
            if isinstance(adapter, WholeModel):
                return adapter.session.run(inputs, outputs)
            options = adapter.options if isinstance(adapter, OnnxAdapter) else None
        # `None` would make the engine look the names up in every call.
        names = self._names if outputs is None else outputs
        try:
            result: list[Array] = self._session.run(names, inputs, options)
        except Exception as e:  # noqa: BLE001 - onnxruntime raises many kinds, bare RuntimeError among them
            raise _run_failed(e, inputs) from None
        return result

    def load_adapter(self, path: str, name: str) -> "OnnxAdapter | WholeModel":
        """Load an adapter file, or a whole model fitted from this one (`.onnx`), which then answers in its place.

        Raises AdapterRefused when it is damaged, replaces anything but this model's head, or has another face than this model.
        """
        file = Path(path)
        if file.suffix == ".onnx":
            return self._whole(file, name)
        ort = import_onnxruntime()
        try:
            if file.stat().st_size > MAX_ADAPTER_BYTES:
                raise AdapterRefused(f"adapter {name}: larger than {MAX_ADAPTER_BYTES} bytes")
            found = {k: tuple(v.shape()) for k, v in ort.AdapterFormat.read_adapter(str(file)).get_parameters().items()}
            adapter = ort.LoraAdapter()
            adapter.Load(str(file))
        except (RuntimeError, ValueError, OSError) as e:
            raise AdapterRefused(f"adapter {name}: not a readable adapter file ({type(e).__name__})") from None
        self._check_parameters(name, found)
        options = ort.RunOptions()
        options.add_active_adapter(adapter)
        return OnnxAdapter(name, options, adapter)

    def _whole(self, file: Path, name: str) -> "WholeModel":
        try:
            session = open_onnx(file, threads=self._threads, mode=self.mode)
        except LoadFailed as e:
            raise AdapterRefused(f"adapter {name}: the engine cannot open it") from e
        # Callers see one model whatever adapter answers, so a whole model must take and give the same tensors.
        if (session.inputs, session.outputs) != (self.inputs, self.outputs):
            raise AdapterRefused(f"adapter {name}: its inputs or outputs are not those of this model")
        return WholeModel(name, session)

    def _check_parameters(self, name: str, found: Mapping[str, tuple[int, ...]]) -> None:
        allowed = {n.name: tuple(n.shape) for n in self._session.get_overridable_initializers()}
        # An adapter file could name any initializer; only those that the export left overridable are the head.
        if not found or any(allowed.get(key) != shape for key, shape in found.items()):
            raise AdapterRefused(f"adapter {name}: it replaces {found}, but this model's head is {allowed or 'fixed'}")


def open_onnx(path: Path, *, threads: int = 1, mode: Mode = "fast", as_written: bool = False) -> OnnxSession:
    """Open an ONNX file with `threads` threads. Raises LoadFailed, EngineMissing.

    Mode `exact` matters on x86 without VNNI: signed weights become unsigned there, whose kernels do not saturate. `as_written`
    runs the nodes of the file one by one, none folded into another.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    # One thread a session by default: many models share few cores, and requests run side by side rather than one faster.
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # A spinning thread waits for work by burning a core, which on two cores is taken from the requests of other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if mode == "exact":
        # Without VNNI the fast kernels add two 8-bit products in 16 bits and saturate (ADR 7).
        options.add_session_config_entry("session.x64quantprecision", "1")
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Its log lines can hold values of a request.
    options.log_severity_level = ORT_LOG_NOTHING
    try:
        # Named, so that an installed GPU provider does not change which kernels compute.
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return OnnxSession(session, threads=threads, mode=mode)
    except Exception as e:  # onnxruntime raises many kinds, bare RuntimeError among them
        raise LoadFailed(f"ONNX Runtime cannot open {path.name}: {_first_line(e)}") from e


def _spec(node: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else -1 for d in node.shape)
    return TensorSpec(node.name, _DATATYPES.get(node.type, node.type), shape)


def _run_failed(error: Exception, inputs: Mapping[str, Array]) -> RunFailed:
    """In our words: the engine's text can hold values of the request, so nothing of it is kept, nor the exception itself."""
    if type(error).__name__ in _CALLERS_FAULT:
        given = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        return InputRefused(f"the model cannot compute these inputs ({given}): a value or a size is outside of what it takes")
    return RunFailed(f"ONNX Runtime could not run the model ({type(error).__name__})")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]

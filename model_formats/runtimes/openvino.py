"""OpenVINO on CPU: one stream, pinned to f32 unless the package allows bf16."""

import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_formats.core.engine_imports import import_openvino
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

__all__ = ["OpenVinoSession", "open_openvino"]

_DATATYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
    "string": "BYTES",
}


class OpenVinoSession:
    """`Session` on OpenVINO. Each concurrent run borrows an inference request of its own."""

    engine: Engine = "openvino"
    mode: Mode = "fast"

    def __init__(self, model: Any, optional: frozenset[str] = frozenset()) -> None:
        self._model = model
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(p) for p in model.inputs if p.get_any_name() not in optional)
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(p) for p in model.outputs)
        self._index = {spec.name: i for i, spec in enumerate(self.outputs)}
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None, adapter: HeadAdapter | None = None
    ) -> list[Array]:
        """Run one batch; see `Session.run`. Raises AdapterRefused when an adapter is given."""
        if adapter is not None:
            raise AdapterRefused("OpenVINO cannot switch heads per request")
        self._check_shapes(inputs)
        indexes = range(len(self.outputs)) if outputs is None else [self._index[n] for n in outputs]
        try:
            with self._request() as request:
                request.infer(dict(inputs))
                # Copied: the tensor is the request's own memory, which the next run overwrites.
                return [request.get_output_tensor(i).data.copy() for i in indexes]
        except (RuntimeError, ValueError, TypeError) as e:  # not `from e`: its text can hold values of the request
            raise RunFailed(f"OpenVINO could not run the model ({type(e).__name__})") from None

    def load_adapter(self, path: str, name: str) -> HeadAdapter:
        """Always refused: heads are switched on ONNX Runtime."""
        raise AdapterRefused(f"adapter {name}: OpenVINO cannot switch heads per request; serve this model on ONNX Runtime")

    def _check_shapes(self, inputs: Mapping[str, Array]) -> None:
        """OpenVINO itself computes something for many a wrong shape."""
        for spec in self.inputs:
            array = inputs.get(spec.name)
            if (
                array is None
                or array.ndim != len(spec.shape)
                or any(w not in (-1, g) for g, w in zip(array.shape, spec.shape, strict=True))
            ):
                raise InputRefused(
                    f"input {spec.name!r}: shape {None if array is None else array.shape}, the model takes {spec.shape}"
                )

    @contextmanager
    def _request(self) -> Iterator[Any]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            # As many as there are concurrent runs, and they are kept: making one allocates all its tensors.
            request = self._model.create_infer_request()
        try:
            yield request
        finally:
            self._idle.put(request)


def open_openvino(path: Path, *, threads: int = 1, allow_bf16: bool = False) -> OpenVinoSession:
    """Open an ONNX file or an IR (`.xml`). Raises LoadFailed, EngineMissing."""
    ov = import_openvino()
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        # One stream and few threads, as with ONNX Runtime: the server runs requests side by side.
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned threads of several models and workers would meet on the same cores.
        "ENABLE_CPU_PINNING": False,
        "LOG_LEVEL": "LOG_NONE",
    }
    if not allow_bf16:
        # Where the CPU has bf16, OpenVINO would use it by itself, and answers would differ from the golden outputs.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        core = ov.Core()
        return OpenVinoSession(core.compile_model(core.read_model(str(path)), "CPU", settings))
    except RuntimeError as e:
        raise LoadFailed(f"OpenVINO cannot open {path.name}: {_last_line(e)}") from e


def _spec(port: Any) -> TensorSpec:
    shape = tuple(d.get_length() if d.is_static else -1 for d in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), _DATATYPES.get(port.get_element_type().get_type_name(), "?"), shape)


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)[:300]

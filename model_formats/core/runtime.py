"""The interface to an inference engine; `runtimes/onnx.py` and `runtimes/openvino.py` implement it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from msgspec import Struct

from model_formats.core.errors import DeviceError, OperatorError, RefusedError

__all__ = [
    "AdapterRefused",
    "Array",
    "Candidate",
    "Engine",
    "EngineMissing",
    "HeadAdapter",
    "InputRefused",
    "LoadFailed",
    "Mode",
    "RunFailed",
    "Session",
    "TensorSpec",
    "candidates",
]

Array = np.ndarray[Any, np.dtype[Any]]
Engine = Literal["onnxruntime", "openvino"]
Mode = Literal["fast", "exact"]
"""How INT8 products are summed: `fast` as the engine likes, `exact` without saturation where the CPU has no 8-bit dot product."""


class Candidate(Struct, frozen=True):
    """An engine and how it computes: one way to run a model file."""

    engine: Engine
    mode: Mode = "fast"


def candidates(engines: Sequence[Engine]) -> tuple[Candidate, ...]:
    """All ways to run a file with these engines: the fast ones first, then the exact ones (OpenVINO has none)."""
    fast = tuple(Candidate(engine) for engine in engines)
    return fast + tuple(Candidate(engine, "exact") for engine in engines if engine == "onnxruntime")


class TensorSpec(Struct, frozen=True):
    """A model's input or output as the engine sees it. `shape` uses -1 for free dimensions; `datatype` in OIP words (`FP32`)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class HeadAdapter(Protocol):
    """A loaded adapter, made by the session it belongs to."""

    @property
    def name(self) -> str:
        """Name at this site."""


class Session(Protocol):
    """A loaded model. Thread-safe to run; one thread inside, no spinning."""

    @property
    def engine(self) -> Engine:
        """Which engine runs it."""

    @property
    def mode(self) -> Mode:
        """How it sums INT8 products."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that a caller gives (overridable initializers are not among them)."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """All graph outputs, `features` among them where the model has it."""

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None, adapter: HeadAdapter | None = None
    ) -> list[Array]:
        """Run one batch; returns the asked outputs in order (all when None). Raises RunFailed."""

    def load_adapter(self, path: str, name: str) -> HeadAdapter:
        """Load an adapter file for this session. Raises AdapterRefused where the engine or the model cannot take it."""


class EngineMissing(OperatorError):
    """An engine that is asked for is not installed on this machine."""

    code = "engine_missing"
    hint = "Install the extra of that name, for example `pip install spokeshave[openvino]`, or choose another engine."


class LoadFailed(DeviceError):
    """The engine cannot open the model file on this machine."""

    code = "load_failed"
    http = 503
    hint = "The file is damaged, or needs a newer engine or another processor; `spoke doctor` tells which."


class RunFailed(DeviceError):
    """The engine opened the model but failed while running it.

    The engine's own text is never part of it: it can hold values of the request.
    """

    code = "run_failed"
    http = 500
    hint = "Compare the request with the model's metadata; if it fits, report the model to its author."


class InputRefused(RunFailed):
    """The engine says that these inputs cannot be computed: a value or a size outside of what the model's operators take."""

    code = "input_refused"
    http = 400
    hint = "Compare names, shapes and values with the model's metadata; an index or a token id may be too large."


class AdapterRefused(RefusedError):
    """An adapter that this engine or this model cannot take."""

    code = "adapter_refused"
    http = 409
    hint = "Fit the adapter again on the version that is served (`spoke tune`); the base model keeps answering."

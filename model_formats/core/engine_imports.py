"""The one place where engines and NNCF are imported: late, and with their telemetry and their logs off.

An engine's log lines and error texts can hold values of a request, so its own log goes nowhere.
"""

import importlib
from types import ModuleType
from typing import Final

from model_formats.core.runtime import EngineMissing
from model_formats.core.telemetry_off import switch_off

__all__ = ["ORT_LOG_NOTHING", "import_nncf", "import_onnxruntime", "import_openvino"]

ORT_LOG_NOTHING: Final = 4
"""ONNX Runtime's severity `fatal`; at `error` it prints values of requests to stderr."""


def import_onnxruntime(module: str = "onnxruntime") -> ModuleType:
    """`onnxruntime`, or one of its modules. Raises EngineMissing."""
    ort = _imported("onnxruntime", "ONNX Runtime")
    ort.disable_telemetry_events()  # the engine's own switch: it may have been imported before ours were set
    ort.set_default_logger_severity(ORT_LOG_NOTHING)
    return ort if module == "onnxruntime" else importlib.import_module(module)


def import_openvino() -> ModuleType:
    """`openvino`. Raises EngineMissing."""
    return _imported("openvino", "OpenVINO")


def import_nncf() -> ModuleType:
    """`nncf`. Raises EngineMissing."""
    return _imported("nncf", "NNCF")


def _imported(name: str, title: str) -> ModuleType:
    switch_off()
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise EngineMissing(f"{title} is not installed") from e

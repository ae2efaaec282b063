"""Switches that keep engines and their tools from reporting to their makers. ADR 6 lists what each package could send.

`model_formats` calls `switch_off` when it is imported, so every process of hub and spoke has the switches before it can load an
engine, and hands them on to its child processes. Imports nothing but the standard library: it is part of every start.
"""

import os
import sys
from typing import Final

__all__ = ["SWITCHES", "switch_off"]

SWITCHES: Final = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.29 and newer
    "FASTAPI_OTEL_AUTO_CONFIGURE": "false",  # FastAPI would export spans and exception texts where the environment says so
    "ARROW_TRACING_BACKEND": "",  # PyArrow has an exporter of traces built in
    "HF_HUB_DISABLE_TELEMETRY": "1",  # libraries of Hugging Face, should something bring them along
    "DO_NOT_TRACK": "1",  # what many tools agree on
}
"""Environment variables that switch telemetry off, and their values."""

_TELEMETRY_PACKAGE = "openvino_telemetry"
_SENDING = ("send_event", "send_error", "send_stack_trace", "start_session", "end_session", "force_shutdown")


def switch_off() -> None:
    """Set the environment variables, whatever they were, and close the package that OpenVINO and NNCF report through."""
    os.environ.update(SWITCHES)
    loaded = sys.modules.get(_TELEMETRY_PACKAGE)
    if loaded is None:
        sys.modules[_TELEMETRY_PACKAGE] = None  # type: ignore[assignment]  # an import of it fails from now on
        return
    telemetry = getattr(loaded, "Telemetry", None)
    for name in _SENDING:  # somebody imported it before us: it stays, but sends nothing
        if hasattr(telemetry, name):
            setattr(telemetry, name, lambda *_, **__: None)

"""Formats how a spoke runs a version: engine, mode, and the variants that it passed over."""

from collections.abc import Mapping
from typing import Any

__all__ = ["micros", "passed_over", "way"]


def way(told: Mapping[str, Any]) -> str:
    """`onnxruntime`, or `onnxruntime (exact)`; empty where nothing runs yet."""
    return f"{told['engine'] or ''}{' (exact)' if told['mode'] == 'exact' else ''}"


def passed_over(evidence: Mapping[str, Any]) -> str:
    """`onnx-int8: golden_mismatch`, for each variant that comes before the chosen one."""
    return ", ".join(f"{p['variant']}: {p['reason']}" for p in evidence["passed_over"])


def micros(time: float | None) -> str:
    """Microseconds, for a table."""
    return "" if time is None else f"{time:,.0f} µs"

"""What a caller may ask about the server and its models, as plain values: the same words over HTTP and gRPC."""

from typing import Any, Final

from model_formats.documents.feature_contract import TensorContract
from spoke_agent.server.metrics import Histogram
from spoke_agent.server.models.model_set import ModelSet
from spoke_agent.server.models.version import Version

__all__ = ["EXTENSIONS", "config", "index", "metadata", "server", "statistics"]

EXTENSIONS: Final = (
    "binary_tensor_data",
    "adapters",
    "feedback",
    "model_configuration",
    "model_repository(index)",
    "parameters",
    "statistics",
)
_PLATFORMS: Final = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino"}


def server() -> dict[str, Any]:
    """The server's own metadata."""
    return {"name": "spokeshave", "version": _own_version(), "extensions": list(EXTENSIONS)}


def metadata(models: ModelSet, model: str, number: str | None) -> dict[str, Any]:
    """What a model takes and gives. Raises UnknownTarget, NotServing."""
    version = models.version(model, number)[1]
    loaded_version = version.loaded_version
    numbers = [v.number for v in models.current(version.model).versions]
    return {
        "name": version.model,
        "versions": [str(n) for n in sorted(set(numbers))],
        "platform": _PLATFORMS[loaded_version.engine],
        "inputs": [_tensor(t) for t in version.signature.inputs],
        "outputs": [_tensor(t) for t in version.signature.outputs],
        "parameters": {
            "engine": loaded_version.engine,
            "mode": loaded_version.session.mode,
            "placement": loaded_version.placement,
            "variant": loaded_version.slot.variant,
            "file": version.file,
            "latency_ms": round(loaded_version.latency_ms, 4),
            "rows_a_batch": version.batcher.rows_a_batch,
        },
    }


def config(models: ModelSet, model: str, number: str | None) -> dict[str, Any]:
    """What Triton's clients read of a model configuration. Raises UnknownTarget, NotServing."""
    version = models.version(model, number)[1]

    def tensor(t: TensorContract) -> dict[str, Any]:
        dims = t.shape[1:] if version.signature.batched else t.shape
        return {"name": t.name, "data_type": f"TYPE_{'STRING' if t.datatype == 'BYTES' else t.datatype}", "dims": dims}

    return {
        "name": version.model,
        "platform": _PLATFORMS[version.loaded_version.engine],
        "backend": version.loaded_version.engine,
        "max_batch_size": version.batcher.rows_a_batch if version.signature.batched else 0,
        "input": [tensor(t) for t in version.signature.inputs],
        "output": [tensor(t) for t in version.signature.outputs],
    }


def index(models: ModelSet) -> list[dict[str, str]]:
    """Every version that is loaded or should be, and why one is not."""
    rows = []
    for name, current in models.live.items():
        rows += [
            {"name": name, "version": str(v.number), "state": "READY", "reason": "" if v is current.answering else "standing by"}
            for v in current.versions
        ]
        rows += [
            {"name": name, "version": str(f.version), "state": "UNAVAILABLE", "reason": f.detail} for f in current.faults.values()
        ]
    return rows


def statistics(models: ModelSet, model: str | None, number: str | None) -> dict[str, Any]:
    """Counts as Triton tells them, of one version, one model or all. Raises UnknownTarget."""
    names = [model] if model is not None else list(models.live)
    versions = [v for n in names for v in ([models.version(n, number)[1]] if number else models.current(n).versions)]
    return {"model_stats": [_stats(v) for v in versions]}


def _tensor(tensor: TensorContract) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def _stats(version: Version) -> dict[str, Any]:
    c = version.counts
    return {
        "name": version.model,
        "version": str(version.number),
        "inference_count": c.rows,
        "execution_count": c.run_us.size,
        "inference_stats": {
            "success": _duration(c.request_us),
            "fail": {"count": c.errors, "ns": 0},
            "compute_infer": _duration(c.run_us),
        },
    }


def _duration(histogram: Histogram) -> dict[str, int]:
    return {"count": histogram.size, "ns": histogram.total * 1000}


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # late: 10 ms of a start, for what few ask

    try:
        return version("spokeshave")
    except PackageNotFoundError:
        return "0"

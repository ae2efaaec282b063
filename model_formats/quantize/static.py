"""Static QDQ: unsigned 8-bit activations, signed weights per channel, ranges by MinMax over calibration rows.

Ranges come from the float64 evaluator, so that the same file is made on every CPU.
One such file runs at full speed in ONNX Runtime and in OpenVINO.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from model_formats.arithmetic import Evaluator, NotEvaluable
from model_formats.core.engine_imports import import_onnxruntime
from model_formats.core.runtime import Array
from model_formats.export.graph import load_graph
from model_formats.quantize.layers import HEAD_NODE, QUANTIZED, QuantizeFailed, Weights, preparation, quiet_quantizer

__all__ = ["StaticQdq"]

_BATCH = 32
Ranges = dict[str, tuple[Any, Any]]


class StaticQdq:
    """`rows`: calibration rows by input name. `weights` other than the default are for measuring what they cost."""

    def __init__(self, rows: Mapping[str, Array], weights: Weights = "signed-7") -> None:
        self.rows, self._weights = rows, weights
        self._ranges: dict[Path, Ranges | None] = {}
        self.text = f"static QDQ per-channel MinMax, {weights} weights, {len(next(iter(rows.values())))} calibration rows"

    def quantize(self, prepared: Path, out: Path, *, only: Sequence[str] = (), keep_float: Sequence[str] = ()) -> None:
        """See `Recipe.quantize`. Ranges of a prepared file are found once."""
        prepared, out = prepared.absolute(), out.absolute()
        # The gate quantizes the same file many times while it searches; finding ranges is the slow part.
        if prepared not in self._ranges:
            self._ranges[prepared] = _ranges(prepared, self.rows)
        # The head stays in float, since sites replace its weights by adapters.
        excluded = [HEAD_NODE, *preparation(prepared), *keep_float]
        extra: dict[str, Any] = _leave_inputs_of_float_layers_alone(prepared) if keep_float or only else {}
        if self._weights == "unsigned-8":
            extra["WeightSymmetric"] = True
        try:
            with quiet_quantizer():
                self._write(prepared, out, list(only), excluded, extra)
        except Exception as e:  # the quantizer raises many kinds
            raise QuantizeFailed(f"{prepared.name}: static quantization failed: {str(e)[:200]}") from e

    def _write(self, prepared: Path, out: Path, only: list[str], excluded: list[str], extra: dict[str, Any]) -> None:
        """As `onnxruntime.quantization.quantize_static` does it, but for the ranges."""
        tools, calibrate, registry = _tools(), _tools("calibrate"), _tools("registry")
        found = self._ranges[prepared] or _ranges_of_engine(prepared, self.rows)
        data = {name: calibrate.TensorData(lowest=low, highest=high) for name, (low, high) in found.items()}
        quantizer = _tools("qdq_quantizer").QDQQuantizer(
            _tools("quant_utils").load_model_with_shape_infer(prepared),
            True,  # noqa: FBT003 - its own signature: weights per channel
            self._weights == "signed-7",
            tools.QuantType.QUInt8 if self._weights == "unsigned-8" else tools.QuantType.QInt8,
            tools.QuantType.QUInt8,
            calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, data),
            only,
            excluded,
            list(QUANTIZED) if only else sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry}),
            extra,
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(out))


def _leave_inputs_of_float_layers_alone(prepared: Path) -> dict[str, Any]:
    """Quantize what a quantized layer takes, not what a layer gives; else a float layer would still see INT8 rounding in its
    input.
    """
    return {"OpTypesToExcludeOutputQuantization": sorted({n.op_type for n in load_graph(prepared).graph.node})}


def _ranges(prepared: Path, rows: Mapping[str, Array]) -> Ranges | None:
    """Smallest and largest value of every float tensor; None where the graph cannot be evaluated."""
    try:
        evaluator, found = Evaluator(prepared), Ranges()
        for batch in _batches(rows):
            for name, array in evaluator.tensors(batch).items():
                # A batch can leave a tensor empty; it has no range.
                if array.dtype.kind == "f" and array.size:
                    _widen(found, name, array.min(), array.max())
    except NotEvaluable:
        return None
    return {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}


def _widen(found: Ranges, name: str, low: Any, high: Any) -> None:
    before = found.get(name, (low, high))
    found[name] = (min(before[0], low), max(before[1], high))


def _ranges_of_engine(prepared: Path, rows: Mapping[str, Array]) -> Ranges:
    """The same by ONNX Runtime, for graphs that only it can run: they may differ between CPUs in their last bits."""
    tools = _tools("calibrate")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """Batches of the rows, once through."""

        def __init__(self) -> None:
            self.batches = iter(_batches(rows))

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    calibrator = tools.create_calibrator(
        prepared, augmented_model_path="augmented.onnx", calibrate_method=tools.CalibrationMethod.MinMax
    )  # in the quantizer's temporary folder
    calibrator.collect_data(Reader())
    return {name: data.range_value for name, data in calibrator.compute_data().items()}


def _tools(module: str = "") -> ModuleType:
    """ONNX Runtime's quantizer, or a module of it."""
    return import_onnxruntime(f"onnxruntime.quantization.{module}".rstrip("."))


def _batches(rows: Mapping[str, Array]) -> list[dict[str, Array]]:
    size = len(next(iter(rows.values())))
    return [{n: a[i : i + _BATCH] for n, a in rows.items()} for i in range(0, size, _BATCH)]

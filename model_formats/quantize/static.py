"""Static QDQ: unsigned 8-bit activations, signed 8-bit weights per channel, ranges by MinMax over calibration rows.

One such file runs at full speed in ONNX Runtime and in OpenVINO.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from model_formats.export.graph import load_graph
from model_formats.quantize.recipe import HEAD_NODE, QUANTIZED, QuantizeFailed, preparation, quiet_quantizer
from model_formats.runtimes.base import Array
from model_formats.runtimes.imports import import_onnxruntime

__all__ = ["StaticQdq"]

_BATCH = 32


class StaticQdq:
    """`rows`: calibration rows by input name."""

    def __init__(self, rows: Mapping[str, Array]) -> None:
        self.rows = rows
        self.text = f"static QDQ per-channel MinMax, {len(next(iter(rows.values())))} calibration rows"

    def quantize(self, prepared: Path, out: Path, *, only: Sequence[str] = (), keep_float: Sequence[str] = ()) -> None:
        """See `Recipe.quantize`."""
        tools = import_onnxruntime("onnxruntime.quantization")
        prepared, out = prepared.absolute(), out.absolute()
        with quiet_quantizer():
            try:
                tools.quantize_static(
                    str(prepared),
                    str(out),
                    _reader(self.rows),
                    quant_format=tools.QuantFormat.QDQ,
                    op_types_to_quantize=None if not only else list(QUANTIZED),
                    per_channel=True,
                    activation_type=tools.QuantType.QUInt8,
                    weight_type=tools.QuantType.QInt8,
                    nodes_to_quantize=list(only) or None,
                    nodes_to_exclude=[HEAD_NODE, *preparation(prepared), *keep_float],
                    calibrate_method=tools.CalibrationMethod.MinMax,
                    extra_options=_leave_inputs_of_float_layers_alone(prepared) if keep_float or only else {},
                )
            except Exception as e:  # the quantizer raises many kinds
                raise QuantizeFailed(f"{prepared.name}: static quantization failed: {str(e)[:200]}") from e


def _leave_inputs_of_float_layers_alone(prepared: Path) -> dict[str, list[str]]:
    """Quantize what a quantized layer takes, not what a layer gives; else a float layer would still see INT8 rounding in its
    input.
    """
    return {"OpTypesToExcludeOutputQuantization": sorted({n.op_type for n in load_graph(prepared).graph.node})}


def _reader(rows: Mapping[str, Array]) -> object:
    tools = import_onnxruntime("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """Batches of the rows, once through."""

        def __init__(self) -> None:
            size = len(next(iter(rows.values())))
            self.batches = iter([{n: a[i : i + _BATCH] for n, a in rows.items()} for i in range(0, size, _BATCH)])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    return Reader()

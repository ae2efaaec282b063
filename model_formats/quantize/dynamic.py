"""Dynamic INT8: weights per channel, activations scaled at run time.

For transformers; never for convolutions, which become four times slower than fp32.
"""

from collections.abc import Sequence
from pathlib import Path

from model_formats.core.engine_imports import import_onnxruntime
from model_formats.quantize.layers import HEAD_NODE, QuantizeFailed, Weights, quiet_quantizer
from model_formats.quantize.weights import round_weights

__all__ = ["DynamicInt8"]

_OPERATORS = ["MatMul", "Gemm", "Gather"]


class DynamicInt8:
    """Matrix products and embeddings. `weights` other than the default are for measuring what they cost."""

    def __init__(self, weights: Weights = "signed-7") -> None:
        self._weights = weights
        self.text = f"dynamic INT8 of MatMul, Gemm and Gather, {weights} weights per channel"

    def quantize(self, prepared: Path, out: Path, *, only: Sequence[str] = (), keep_float: Sequence[str] = ()) -> None:
        """See `Recipe.quantize`. A layer that is kept in float keeps eight-bit weights: they are most of a transformer."""
        tools = import_onnxruntime("onnxruntime.quantization")
        prepared, out = prepared.absolute(), out.absolute()
        with quiet_quantizer():
            try:
                tools.quantize_dynamic(
                    str(prepared),
                    str(out),
                    op_types_to_quantize=_OPERATORS,
                    per_channel=True,
                    weight_type=tools.QuantType.QUInt8 if self._weights == "unsigned-8" else tools.QuantType.QInt8,
                    reduce_range=self._weights == "signed-7",
                    nodes_to_quantize=_split(only) or None,
                    nodes_to_exclude=_split([HEAD_NODE, *keep_float]),
                )
            except Exception as e:  # the quantizer raises many kinds
                raise QuantizeFailed(f"{prepared.name}: dynamic quantization failed: {str(e)[:200]}") from e
        if keep_float:
            round_weights(out, _split(keep_float))


def _split(names: Sequence[str]) -> list[str]:
    """The quantizer makes a product and a sum of every Gemm, under new names, before it looks at ours."""
    return [n for name in names for n in (name, f"{name}_MatMul")]

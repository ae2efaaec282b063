"""INT8 OpenVINO IR by NNCF: an option beside the QDQ file, which OpenVINO runs as well.

OpenVINO has no exact mode, so all weights get seven bits (NNCF's overflow fix; its default fixes the first layer only): with
eight, a table of thirty columns fell from .96 to .61 on a CPU with AVX2 and without VNNI.
"""

from collections.abc import Mapping
from pathlib import Path

from model_formats.core.engine_imports import import_nncf, import_openvino
from model_formats.core.runtime import Array
from model_formats.quantize.layers import HEAD_NODE, QuantizeFailed, quiet_quantizer

__all__ = ["quantize_ir"]


def quantize_ir(source: Path, out: Path, rows: Mapping[str, Array], *, transformer: bool = False) -> str:
    """Write `out` (.xml, with .bin beside it); the head stays in float.

    Returns the recipe's text. Raises QuantizeFailed, EngineMissing.
    """
    source, out = source.absolute(), out.absolute()
    size = len(next(iter(rows.values())))
    try:
        with quiet_quantizer():
            ov, nncf = import_openvino(), import_nncf()
            model = ov.Core().read_model(str(source))
            batches = [{n: a[i : i + 1] for n, a in rows.items()} for i in range(size)]
            quantized = nncf.quantize(
                model,
                nncf.Dataset(batches),
                subset_size=size,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
                ignored_scope=nncf.IgnoredScope(patterns=[f"{HEAD_NODE}(/.*)?"], validate=False),
            )
            ov.save_model(quantized, str(out), compress_to_fp16=False)
    except (RuntimeError, ValueError) as e:
        raise QuantizeFailed(f"{source.name}: NNCF failed: {str(e)[:200]}") from e
    return f"NNCF post-training INT8, seven-bit weights, {size} calibration rows"

"""The interface of a quantization recipe, and the choice of a recipe for a graph."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from model_formats.core.engine_imports import import_onnxruntime
from model_formats.core.errors import AuthorError
from model_formats.export.graph import load_graph

__all__ = [
    "HEAD_NODE",
    "QuantizeFailed",
    "QuantizeRecipe",
    "Weights",
    "layers",
    "preparation",
    "prepare",
    "quiet_quantizer",
    "suggest",
]

HEAD_NODE = "head"
"""Name of the node that `expose_head` makes; never quantized."""
QUANTIZED = ("Conv", "Gemm", "MatMul")
Weights = Literal["signed-7", "signed-8", "unsigned-8"]
"""Type and bits of weights. Seven bits cannot saturate on any CPU: two products of 255 x 64 fit into 16 bits (ADR 7)."""


class QuantizeFailed(AuthorError):
    """The quantizer could not make an INT8 file out of the graph."""

    code = "quantize_failed"
    hint = "Build with quantize='none', or change the layer that the message names."


class QuantizeRecipe(Protocol):
    """Makes an INT8 file out of a prepared fp32 file."""

    text: str
    """As in the evidence: method, format, calibration."""

    def quantize(self, prepared: Path, out: Path, *, only: Sequence[str] = (), keep_float: Sequence[str] = ()) -> None:
        """Quantize all layers, or `only` these, but for `keep_float`. Raises QuantizeFailed."""


def prepare(source: Path, out: Path) -> None:
    """The quantizer's own pre-processing: fold, infer shapes (symbolically, where that comes to an end).

    Without it the quantizer stumbles over dynamo exports. The graph must have been stripped of the exporter's shapes.
    """
    tools = import_onnxruntime("onnxruntime.quantization.shape_inference")
    source, out = source.absolute(), out.absolute()
    failed: Exception | None = None
    for skip_symbolic in (False, True):
        with quiet_quantizer():
            try:
                tools.quant_pre_process(str(source), str(out), skip_symbolic_shape=skip_symbolic)
            except Exception as e:  # noqa: BLE001 - sympy, onnx and onnxruntime raise many kinds
                failed = e
            else:
                return
    raise QuantizeFailed(f"{source.name}: shape inference failed: {str(failed)[:200]}") from failed


def layers(prepared: Path) -> list[str]:
    """Names of the nodes that may be quantized, in graph order."""
    return [n.name for n in load_graph(prepared).graph.node if n.op_type in QUANTIZED and n.name and n.name != HEAD_NODE]


def preparation(prepared: Path) -> list[str]:
    """Names of the nodes before the first layer.

    They scale raw inputs, whose columns may differ by thousands: they stay in float.
    """
    passed: set[str] = set()
    found: list[str] = []
    for node in load_graph(prepared).graph.node:
        if node.op_type in QUANTIZED or passed.intersection(node.input):
            passed.update(node.output)
        else:
            found.append(node.name)
    return found


def suggest(model: Any) -> Literal["static", "dynamic"]:
    """Transformers (layer normalisation or attention) do best with dynamic INT8 of their products; convolutions need static
    QDQ.
    """
    found = {n.op_type for n in model.graph.node}
    return "dynamic" if found & {"LayerNormalization", "SkipLayerNormalization", "Attention", "MultiHeadAttention"} else "static"


@contextlib.contextmanager
def quiet_quantizer() -> Iterator[None]:
    """ONNX Runtime's tools and NNCF log, warn and draw bars on stdout for their authors, not for ours.

    They work in a temporary folder: shape inference leaves `sym_shape_infer_temp.onnx` and its data in the working folder
    whenever it gives up. So paths must be made absolute before.
    """
    import_onnxruntime()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="spokeshave-quantize-") as scratch,
            contextlib.chdir(scratch),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

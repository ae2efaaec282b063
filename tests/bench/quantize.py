"""INT8 beside fp32: size, processor time, accuracy, for a CNN, a vision transformer and a table; with other recipes as peers.

    python -m tests.bench.quantize

Writes build/bench/quantize.json. Processor time is the best of alternating rounds, so that a busy machine is fair to all.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hub.train.breast_cancer import BreastCancerRecipe
from hub.train.digits import DigitsRecipe
from hub.train.recipe import Schedule
from hub.train.runner import train
from hub.train.vit import VitRecipe
from model_formats.build.scoring import predict
from model_formats.core.runtime import Array, Session
from model_formats.export.graph import load_graph, save_graph
from model_formats.export.head import expose_head
from model_formats.quantize.dynamic import DynamicInt8
from model_formats.quantize.layers import prepare
from model_formats.quantize.openvino_ir import quantize_ir
from model_formats.quantize.static import StaticQdq
from model_formats.runtimes.select import open_session

OUT = Path("build/bench/quantize.json")


class LargerCnn(DigitsRecipe):
    """The 240 000-weight CNN of the field notes: large enough that arithmetic, not overhead, is measured."""

    name = "cnn-240k"

    def schedule(self) -> Schedule:
        return Schedule(epochs=15)

    def module(self) -> Any:
        from torch import nn

        def stage(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

        trunk = nn.Sequential(
            stage(1, 32), stage(32, 64), nn.MaxPool2d(2), stage(64, 96), stage(96, 96), nn.MaxPool2d(2), nn.Flatten()
        )
        return nn.Sequential(trunk, nn.Linear(384, 224), nn.ReLU(), nn.Linear(224, 10))


def variants(recipe: Any, folder: Path) -> tuple[dict[str, tuple[Session, int]], Any]:
    """Sessions and sizes of fp32, our recipes and the peers."""
    trained = train(recipe, runs=folder / "runs")
    raw, fp32, prepared = folder / "raw.onnx", folder / "fp32.onnx", folder / "prepared.onnx"
    trained.source.export(raw, trained.options.contract)
    model = load_graph(raw)
    expose_head(model, trained.options.contract.outputs[0].name)
    save_graph(model, fp32)
    prepare(fp32, prepared)
    rows = trained.data.train.take(slice(0, 256)).inputs
    made = {"fp32": fp32, "static": folder / "static.onnx", "dynamic": folder / "dynamic.onnx"}
    StaticQdq(rows).quantize(prepared, made["static"])
    DynamicInt8().quantize(prepared, made["dynamic"])
    found = {name: (open_session(path), path.stat().st_size) for name, path in made.items()}
    found["fp32 on OpenVINO"] = (open_session(fp32, engine="openvino"), fp32.stat().st_size)
    found["static on OpenVINO"] = (open_session(made["static"], engine="openvino"), made["static"].stat().st_size)
    ir = folder / "ir.xml"
    quantize_ir(fp32, ir, rows, transformer=isinstance(recipe, VitRecipe))
    found["NNCF IR on OpenVINO"] = (
        open_session(ir, engine="openvino"),
        ir.stat().st_size + ir.with_suffix(".bin").stat().st_size,
    )
    return found, trained


def times(sessions: Mapping[str, Session], inputs: Mapping[str, Array], rows: int, rounds: int = 60) -> dict[str, float]:
    """Best processor milliseconds of a batch, in alternating rounds."""
    batch = {n: np.ascontiguousarray(a[:rows]) for n, a in inputs.items()}
    repeat = 8 if rows == 1 else 2
    best = dict.fromkeys(sessions, float("inf"))
    for _ in range(rounds):
        for name, session in sessions.items():
            began = time.thread_time() if session.engine == "onnxruntime" else time.process_time()
            for _ in range(repeat):
                session.run(batch)
            ended = time.thread_time() if session.engine == "onnxruntime" else time.process_time()
            best[name] = min(best[name], (ended - began) / repeat * 1e3)
    return best


def rows_of(recipe: Any) -> list[dict[str, Any]]:
    """One row a variant."""
    with tempfile.TemporaryDirectory() as folder:
        found, trained = variants(recipe, Path(folder))
        held, output = trained.data.held_out, trained.options.contract.outputs[0].name
        sessions = {name: session for name, (session, _) in found.items()}
        one, many = times(sessions, held.inputs, 1), times(sessions, held.inputs, 32)
        return [
            {
                "model": recipe.name,
                "variant": name,
                "bytes": size,
                "accuracy": float((predict(session, held.inputs, [output])[output].argmax(axis=1) == held.labels).mean()),
                "cpu_ms_batch1": round(one[name], 4),
                "cpu_ms_batch32": round(many[name], 4),
            }
            for name, (session, size) in found.items()
        ]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """INT8 over fp32 of the CNN, and what the gate would keep for each model."""
    by = {(r["model"], r["variant"]): r for r in rows}
    fp32, int8 = by["cnn-240k", "fp32"], by["cnn-240k", "static"]
    vit32, vit8 = by["digits-vit", "fp32"], by["digits-vit", "dynamic"]
    return {
        "int8_size_over_fp32": int8["bytes"] / fp32["bytes"],
        "int8_cpu_over_fp32_batch32": int8["cpu_ms_batch32"] / fp32["cpu_ms_batch32"],
        "int8_accuracy_drop": fp32["accuracy"] - int8["accuracy"],
        "int8_cpu_over_dynamic_batch32": int8["cpu_ms_batch32"] / by["cnn-240k", "dynamic"]["cpu_ms_batch32"],
        "vit_int8_size_over_fp32": vit8["bytes"] / vit32["bytes"],
        "vit_int8_cpu_over_fp32_batch32": vit8["cpu_ms_batch32"] / vit32["cpu_ms_batch32"],
        "vit_int8_accuracy_drop": vit32["accuracy"] - vit8["accuracy"],
    }


def main() -> None:
    """Measure, print, write."""
    rows = [row for recipe in (LargerCnn(), DigitsRecipe(), VitRecipe(), BreastCancerRecipe()) for row in rows_of(recipe)]
    for row in rows:
        print("{model:14} {variant:20} {bytes:>9} {accuracy:.4f} {cpu_ms_batch1:8.4f} {cpu_ms_batch32:8.4f}".format(**row))
    result = {"name": "quantize", "rows": rows, "ratios": {k: round(v, 4) for k, v in ratios(rows).items()}}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2))
    print(json.dumps(result["ratios"], indent=2))


if __name__ == "__main__":
    main()

"""A small model over token ids, as an ONNX file and rows: embedding, mean, linear head. An id past its table cannot be run."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WORDS, CLASSES = 50, 6, 2


def write_words(folder: Path) -> Path:
    """`words.onnx`, `train.npz` and `held.npz`. Returns the folder."""
    folder.mkdir()
    noise = np.random.default_rng(5)
    table, head = noise.normal(size=(VOCABULARY, 8)).astype(np.float32), noise.normal(size=(8, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"], name="lookup"),
        helper.make_node("ReduceMean", ["embedded", "axes"], ["mean"], keepdims=0, name="mean"),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["logits"], name="last"),
    ]
    values = {"table": table, "weight": head, "bias": np.zeros(CLASSES, np.float32), "axes": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", WORDS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "words.onnx").write_bytes(model.SerializeToString())
    for name, rows in (("train", 400), ("held", 400)):
        ids = noise.integers(0, VOCABULARY, (rows, WORDS))
        labels = (table[ids].mean(1) @ head).argmax(1)
        np.savez(folder / f"{name}.npz", **{"input:ids": ids, "labels": labels})
    return folder

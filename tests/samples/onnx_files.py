"""ONNX files as they come from training: a base, a fine-tune of it, something unrelated. Weights only; nobody runs them."""

from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper


def write_onnx(path: Path, tensors: dict[str, np.ndarray], *, note: str = "") -> Path:
    names = list(tensors)
    node = helper.make_node(
        "Concat", [n for n in names if tensors[n].dtype == np.float32] or names, ["y"], axis=0, name=note or "n"
    )
    graph = helper.make_graph([node], "g", [], [], [numpy_helper.from_array(a, n) for n, a in tensors.items()])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def base_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(seed)
    return {
        "words": noise.integers(-90, 90, (1000, 64), dtype=np.int8),
        "dense": noise.normal(0, 30, (256, 256)).clip(-127, 127).astype(np.int8),
        "conv": noise.normal(0, 30, (32, 16, 3, 3)).clip(-127, 127).astype(np.int8),
        "scale": noise.random(256, np.float32),
        "bias": noise.normal(0, 1, 256).astype(np.float32),
        "half": noise.normal(0, 1, (64, 8)).astype(np.float16),
        "head": noise.normal(0, 1, (64, 10)).astype(np.float32),
    }


def finetuned(tensors: dict[str, np.ndarray], seed: int = 1, rate: float = 0.06) -> dict[str, np.ndarray]:
    """Some weights one step up or down, some rows untouched, floats a little different."""
    noise, out = np.random.default_rng(seed), {}
    for name, array in tensors.items():
        if array.dtype == np.int8:
            step = noise.choice([-1, 1], array.shape) * (noise.random(array.shape) < rate)
            step[: len(step) // 2] = 0
            out[name] = (array + step.astype(np.int8)).astype(np.int8)
        else:
            out[name] = (array * (1 + noise.normal(0, 0.001, array.shape))).astype(array.dtype)
    return out

"""The model, for the programs beside it."""

import onnxruntime as ort


def session(path: str) -> ort.InferenceSession:
    """ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

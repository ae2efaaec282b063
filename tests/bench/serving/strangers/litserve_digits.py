"""One worker, no batching (LitServe's batches wait for a timer)."""

import sys
from typing import Any

import litserve
import numpy as np
from model import session


class Digits(litserve.LitAPI):
    """One model."""

    def setup(self, device: str) -> None:
        """Open it."""
        self.session = session(sys.argv[2])

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        """The protocol's first tensor."""
        tensor = request["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """One request."""
        return self.session.run(["logits"], {"image": x})[0]

    def encode_response(self, logits: np.ndarray) -> dict[str, Any]:
        """The protocol's answer."""
        return {"outputs": [{"name": "logits", "datatype": "FP32", "shape": logits.shape, "data": logits.ravel().tolist()}]}


if __name__ == "__main__":
    server = litserve.LitServer(Digits(api_path="/v2/models/digits/infer"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False, num_api_servers=1)

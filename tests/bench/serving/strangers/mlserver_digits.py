"""A custom runtime in the process that serves (no parallel workers), as MLServer's guide advises for small models."""

import json
import os
import sys
import tempfile
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from model import session


class Digits(MLModel):
    """One model."""

    async def load(self) -> bool:
        """Open it."""
        self.session = session(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request."""
        logits = self.session.run(["logits"], {"image": NumpyCodec.decode_input(payload.inputs[0])})[0]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[NumpyCodec.encode_output("logits", logits)])


if __name__ == "__main__":
    port, path = int(sys.argv[1]), sys.argv[2]
    folder = tempfile.mkdtemp(dir=Path.cwd())
    ports = {"host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    (Path(folder) / "settings.json").write_text(json.dumps({**ports, "debug": False, "parallel_workers": 0}))
    settings = {"name": "digits", "implementation": "mlserver_digits.Digits", "parameters": {"uri": path}}
    (Path(folder) / "model-settings.json").write_text(json.dumps(settings))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", folder])

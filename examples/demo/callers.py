"""People who call the spokes: a client of the Open Inference Protocol, and a shop that keeps sending its own digits."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np


class Caller:
    """Calls one spoke's `/v2` over loopback, as any program at the site would."""

    def __init__(self, home: Path, model: str = "digits", timeout_s: float = 10, *, by_socket: bool = False) -> None:
        """`by_socket`: over the unix socket, for a spoke whose loopback is not ours."""
        self.model = model
        self._port_file = home / "run" / "server.port"
        transport = httpx.HTTPTransport(uds=str(home / "run" / "server.sock")) if by_socket else None
        self._client = httpx.Client(timeout=timeout_s, transport=transport)

    @property
    def url(self) -> str:
        """Where the spoke listens now (a restarted server may have another port)."""
        return f"http://127.0.0.1:{self._port_file.read_text().strip()}/v2"

    def infer(self, images: np.ndarray[Any, Any], request_id: str | None = None, **parameters: Any) -> np.ndarray[Any, Any]:
        """Logits [n, 10] of raw images [n, 1, 8, 8]. Raises httpx.HTTPError."""
        body: dict[str, Any] = {
            "inputs": [{"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}],
            "outputs": [{"name": "logits"}],
        }
        if request_id is not None:
            body["id"] = request_id
        if parameters:
            body["parameters"] = parameters
        answer = self._client.post(f"{self.url}/models/{self.model}/infer", json=body).raise_for_status().json()
        output = answer["outputs"][0]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    def feedback(self, request_id: str, label: int) -> None:
        """Tell the spoke what the right answer was."""
        self._client.post(f"{self.url}/models/{self.model}/feedback", json={"id": request_id, "label": label}).raise_for_status()

    def accuracy(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], **parameters: Any) -> float:
        """Share of right answers, in batches of 32."""
        parts = [self.infer(images[i : i + 32], **parameters) for i in range(0, len(images), 32)]
        return float((np.concatenate(parts).argmax(1) == labels).mean())


class Shop(threading.Thread):
    """Sends a site's own digits one by one until told to stop, and the right answer a moment later where it is known.

    Counts what failed.
    """

    def __init__(
        self,
        caller: Caller,
        images: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any] | None,
        *,
        name: str,
        pause: float = 0.01,
    ) -> None:
        super().__init__(name=f"shop-{name}", daemon=True)
        self.caller, self.images, self.labels, self.pause = caller, images, labels, pause
        self.sent = self.failed = 0
        self.last_error = ""
        self._end = threading.Event()
        self._prefix = f"{name}-{time.monotonic_ns()}"

    def run(self) -> None:
        """The thread."""
        for number in itertools.count():
            if self._end.wait(self.pause):
                return
            row = number % len(self.images)
            request_id = f"{self._prefix}-{number}"
            try:
                self.caller.infer(self.images[row : row + 1], request_id)
                if self.labels is not None:
                    self.caller.feedback(request_id, int(self.labels[row]))
            except (httpx.HTTPError, OSError, ValueError) as e:
                self.failed += 1
                self.last_error = repr(e)
            self.sent += 1

    def __enter__(self) -> "Shop":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join(15)

"""A shop's till (or a camera script) that asks its spoke: standard library only.

    python till.py PORT "0 0 5 13 ..." [LABEL]

Prints the class and how sure the model is. With a label, it also tells the spoke what the right answer was.
"""

import json
import math
import sys
import time
import urllib.error
import urllib.request
import uuid


class Spoke:
    """One model at one spoke."""

    def __init__(self, port: int, model: str, input_name: str, shape: tuple[int, ...]) -> None:
        self.base = f"http://127.0.0.1:{port}/v2/models/{model}"
        self.input_name, self.shape = input_name, shape

    def ask(self, values: list[float]) -> tuple[str, int, float]:
        """One row: the request's id (keep it for a label), the class, the confidence."""
        request_id = str(uuid.uuid4())
        tensor = {"name": self.input_name, "shape": [1, *self.shape], "datatype": "FP32", "data": values}
        answer = self._post("/infer", {"id": request_id, "inputs": [tensor]})
        logits = answer["outputs"][0]["data"]
        top = max(logits)
        shares = [math.exp(x - top) for x in logits]
        best = shares.index(max(shares))
        return request_id, best, shares[best] / sum(shares)

    def tell(self, request_id: str, label: int) -> None:
        """The right answer, known later."""
        self._post("/feedback", {"id": request_id, "label": label})

    def _post(self, path: str, body: dict, tries: int = 5) -> dict:
        data = json.dumps(body).encode()
        for attempt in range(tries):
            try:
                with urllib.request.urlopen(urllib.request.Request(self.base + path, data), timeout=10) as response:
                    return json.load(response)
            except urllib.error.HTTPError as e:
                with e:
                    message = json.load(e)["error"]
                    if e.code != 503 or attempt == tries - 1:
                        raise SystemExit(f"the spoke says: {message}") from None
                    time.sleep(float(e.headers.get("Retry-After", 1)))
        raise AssertionError("not reached")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    spoke = Spoke(int(sys.argv[1]), "digits", "image", (1, 8, 8))
    request_id, found, confidence = spoke.ask([float(x) for x in sys.argv[2].split()])
    print(f"{found} ({confidence:.0%})")
    if len(sys.argv) > 3:
        spoke.tell(request_id, int(sys.argv[3]))

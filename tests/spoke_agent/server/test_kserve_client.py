"""A client in the manner of KServe's REST client, over plain HTTP: which words of each answer it reads.

Source: KServe's `InferenceRESTClient` and `InferResponse.from_bytes` (protocol v2).
"""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.spoke_agent.server.sites import image

HEADER = "inference-header-content-length"


class KServeStyle:
    """Health by the word in the body, readiness of a model by the status, inference as JSON or raw tensors."""

    def __init__(self, base: str) -> None:
        self._http = httpx.Client(base_url=base)

    def close(self) -> None:
        self._http.close()

    def live(self) -> Any:
        return self._http.get("/v2/health/live").raise_for_status().json().get("live")

    def ready(self) -> Any:
        return self._http.get("/v2/health/ready").raise_for_status().json().get("ready")

    def model_ready(self, model: str) -> bool:
        return self._http.get(f"/v2/models/{model}/ready").is_success

    def infer(self, model: str, x: np.ndarray, *, raw: bool) -> tuple[dict[str, Any], np.ndarray]:
        tensor: dict[str, Any] = {"name": "image", "shape": list(x.shape), "datatype": "FP32"}
        document: dict[str, Any] = {"inputs": [tensor], "parameters": {}}
        tail, headers = b"", {"content-type": "application/json"}
        if raw:
            tail = x.tobytes()
            tensor["parameters"] = {"binary_data_size": len(tail)}
            document["parameters"]["binary_data_output"] = True
        else:
            tensor["data"] = x.tolist()
        head = json.dumps(document).encode()
        if raw:
            headers = {HEADER: str(len(head)), "content-type": "application/octet-stream"}
        response = self._http.post(f"/v2/models/{model}/infer", content=head + tail, headers=headers)
        if not response.is_success:
            raise ValueError(response.json()["error"])
        length = int(response.headers.get(HEADER, len(response.content)))
        answer = json.loads(response.content[:length])
        (output,) = answer["outputs"]
        size = output.get("parameters", {}).get("binary_data_size")
        values = np.frombuffer(response.content[length : length + size], "f4") if size else np.array(output["data"], "f4")
        return answer, values.reshape(output["shape"])


@pytest.fixture
def client(shared):
    found = KServeStyle(shared.url)
    yield found
    found.close()


def test_it_sees_that_the_server_lives_and_is_ready(client):
    assert client.live() is True
    assert client.ready() is True
    assert client.model_ready("digits") is True
    assert client.model_ready("nope") is False


def test_its_two_ways_to_ask_give_one_answer(client):
    x = image(3)
    (told, plain), (_, raw) = (client.infer("digits", x, raw=way) for way in (False, True))
    assert (told["model_name"], told["model_version"]) == ("digits", "1")
    np.testing.assert_allclose(plain, raw, rtol=1e-6)


def test_it_is_told_what_is_wrong(client):
    for raw in (False, True):
        with pytest.raises(ValueError, match="image"):
            client.infer("digits", image(1)[:, :, :7], raw=raw)

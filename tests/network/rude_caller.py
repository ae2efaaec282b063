"""Calls a spoke from its own machine, as a person who mistypes would: `python -m tests.network.rude_caller HOME ID VALUE`.

Good requests and bad ones, over HTTP and gRPC, all with the planted token id or value in them. Prints what was answered.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np


def tensor(name: str, array: np.ndarray, datatype: str) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}


def bodies(planted_id: int, value: float) -> Iterator[tuple[str, object]]:
    """Model and body. A row of cells with the value in it is a good one; a token id that the vocabulary lacks is not."""
    cells = np.full((3, 30), value)
    words = np.full((2, 6), 3, np.int64)
    words[1, 4] = planted_id
    yield "breast-cancer", {"inputs": [tensor("cells", cells, "FP32")], "id": f"row-{planted_id}"}
    yield "breast-cancer", {"inputs": [tensor("cells", np.full((3, 29), value), "FP32")]}
    yield "breast-cancer", {"inputs": [tensor("cells", cells, f"FP{planted_id}")]}
    yield "words", {"inputs": [tensor("ids", words, "INT64")]}
    yield "words", {"inputs": [tensor("ids", words.clip(0, 40), "INT64")]}
    yield "words", {"inputs": [tensor("ids", words, "INT64")], "parameters": {"timeout": 5_000_000}}
    yield "words", {"inputs": [{**tensor("ids", words, "INT64"), "data": [str(planted_id)] * 12}]}


def by_http(home: Path, planted_id: int, value: float) -> Iterator[tuple[int, str]]:
    port = (home / "run" / "server.port").read_text().strip()
    for model, body in bodies(planted_id, value):
        for _ in range(3):  # the second and third are known forms and lone callers
            answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/{model}/infer", json=body, timeout=30)
            yield answer.status_code, answer.text


def by_grpc(home: Path, planted_id: int) -> Iterator[tuple[int, str]]:
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    port = (home / "run" / "grpc.port").read_text().strip()
    client = InferenceServerClient(f"127.0.0.1:{port}")
    given = InferInput("ids", [1, 6], "INT64")
    given.set_data_from_numpy(np.full((1, 6), planted_id, np.int64))
    try:
        client.infer("words", [given])
    except InferenceServerException as e:
        yield 400 if "INVALID_ARGUMENT" in str(e.status()) else 500, str(e.message())
    client.close()


if __name__ == "__main__":
    place, number, real = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    said = list(by_http(place, number, real))
    if (place / "run" / "grpc.port").exists():
        said += by_grpc(place, number)
    print(json.dumps(said))

"""The unmodified tritonclient, http and asyncio, does everything it can do here."""

import asyncio

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from spoke_agent.server.protocol.tensors import DTYPES
from tests.spoke_agent.server.sites import image


@pytest.fixture
def client(shared):
    with triton.InferenceServerClient(f"127.0.0.1:{shared.port}") as client:
        yield client


def given(x, *, binary=True):
    tensor = triton.InferInput("image", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return [tensor]


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("nope")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("digits")["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert client.get_model_config("digits")["max_batch_size"] > 1
    assert {"name": "digits", "version": "1", "state": "READY", "reason": ""} in client.get_model_repository_index()
    assert client.get_inference_statistics("digits")["model_stats"][0]["name"] == "digits"
    assert client.get_inference_statistics()["model_stats"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("outputs", ["default", "binary", "json"])
def test_infer_in_every_mixture_of_json_and_binary(client, shared, binary_in, outputs):
    x = image(2)
    wanted = None if outputs == "default" else [triton.InferRequestedOutput("logits", binary_data=outputs == "binary")]
    answer = client.infer("digits", given(x, binary=binary_in), outputs=wanted, request_id="r1", model_version="1")
    session = shared.server.models.live["digits"].answering.loaded_version.session
    np.testing.assert_allclose(answer.as_numpy("logits"), session.run({"image": x}, ["logits"])[0], rtol=1e-5)
    assert answer.get_response()["id"] == "r1"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_packed_both_ways(client, algorithm):
    answer = client.infer(
        "digits", given(image(64)), request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    assert answer.as_numpy("logits").shape == (64, 10)


def test_async_infer_on_the_thread_pool(shared):
    with triton.InferenceServerClient(f"127.0.0.1:{shared.port}", concurrency=4) as client:
        asked = [client.async_infer("digits", given(image(1, seed=i))) for i in range(16)]
        answers = [a.get_result().as_numpy("logits") for a in asked]
    session = shared.server.models.live["digits"].answering.loaded_version.session
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer, session.run({"image": image(1, seed=i)}, ["logits"])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", list(DTYPES))
def test_every_datatype_goes_through(client, shared, datatype, binary):
    if datatype == "FP16" and not binary:
        pytest.skip("FP16 has no JSON form")
    kinds = [t["name"][3:] for t in client.get_model_metadata("echo")["inputs"]]
    values = {kind: sample(kind) for kind in kinds}
    tensors = []
    for kind, value in values.items():
        tensor = triton.InferInput(f"in_{kind}", list(value.shape), kind)
        tensor.set_data_from_numpy(value, binary_data=binary or kind == "FP16")
        tensors.append(tensor)
    answer = client.infer("echo", tensors, outputs=[triton.InferRequestedOutput(f"out_{datatype}", binary_data=binary)])
    got = answer.as_numpy(f"out_{datatype}")
    if datatype == "BYTES":
        got = np.array([x.decode() if isinstance(x, bytes) else x for x in got.ravel()], object).reshape(got.shape)
    np.testing.assert_array_equal(got, values[datatype])


def sample(kind):
    if kind == "BYTES":
        return np.array([["till", "", "caisse n°3"], ["a", "b", "ج"]], object)
    if kind == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    dtype = DTYPES[kind]
    low, high = (-3, 4) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.array([[low, high, 1], [0, 1, 2]], dtype)


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        ("nope", image(1), "'nope'"),
        ("digits", image(1).reshape(1, 64), "shape"),
        ("digits", np.full((1, 1, 8, 8), 99, np.float32), "outside 0.0..16.0"),
        ("digits", np.full((1, 1, 8, 8), np.nan, np.float32), "NaN"),
    ],
)
def test_errors_reach_the_caller_in_words(client, model, x, words):
    with pytest.raises(InferenceServerException, match=r"^(?!.*decoding the response)") as caught:
        client.infer(model, given(x))
    assert words in str(caught.value)


def test_loading_is_refused(client):
    with pytest.raises(InferenceServerException, match="not loaded or unloaded by request"):
        client.load_model("digits")


def test_the_asyncio_client(shared):
    async def talk():
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{shared.port}") as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(*(client.infer("digits", given(image(1, seed=i))) for i in range(8)))
            with pytest.raises(InferenceServerException, match="unknown"):
                await client.infer("digits", given(image()), outputs=[triton_aio.InferRequestedOutput("nope")])
            return [a.as_numpy("logits").shape for a in answers]

    assert asyncio.run(talk()) == [(1, 10)] * 8

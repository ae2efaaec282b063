"""The unmodified tritonclient.grpc, blocking, threaded and asyncio, does everything it can do here."""

import asyncio
import threading

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from spoke_agent.server.protocol.tensors import DTYPES
from tests.spoke_agent.server.sites import image
from tests.spoke_agent.server.test_tritonclient import sample


@pytest.fixture
def client(shared):
    with triton.InferenceServerClient(f"127.0.0.1:{shared.server.grpc_port}") as client:
        yield client


@pytest.fixture
def direct(shared):
    """The model itself, without a server."""
    session = shared.server.models.live["digits"].answering.loaded_version.session
    return lambda x: session.run({"image": x}, ["logits"])[0]


def given(x, datatype="FP32", name="image"):
    tensor = triton.InferInput(name, list(x.shape), datatype)
    tensor.set_data_from_numpy(x)
    return [tensor]


def typed(**fields):
    """A request in typed contents, which the client library itself never sends."""
    request = service_pb2.ModelInferRequest(model_name="digits", id="t1")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    for name, values in fields.items():
        getattr(tensor.contents, name).extend(values)
    return request


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert "adapters" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata("digits")
    assert (metadata.versions[:], metadata.platform) == (["1"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, t.shape[:]) for t in metadata.inputs] == [("image", "FP32", [-1, 1, 8, 8])]
    config = client.get_model_config("digits").config
    assert config.max_batch_size > 1
    assert (config.input[0].name, config.input[0].dims[:]) == ("image", [1, 8, 8])
    assert client.get_model_config("digits", as_json=True)["config"]["input"][0]["data_type"] == "TYPE_FP32"
    index = client.get_model_repository_index().models
    assert {(m.name, m.version, m.state) for m in index} == {("digits", "1", "READY"), ("echo", "1", "READY")}


def test_statistics_count_what_was_answered(client):
    before = client.get_inference_statistics("digits").model_stats[0].inference_count
    client.infer("digits", given(image(3)))
    stats = client.get_inference_statistics("digits", "1").model_stats[0]
    assert stats.inference_count == before + 3
    assert stats.inference_stats.success.count > 0
    assert {s.name for s in client.get_inference_statistics().model_stats} == {"digits", "echo"}


def test_infer_raw(client, direct):
    x = image(2)
    answer = client.infer("digits", given(x), request_id="r1", model_version="1")
    np.testing.assert_allclose(answer.as_numpy("logits"), direct(x), rtol=1e-5)
    told = answer.get_response()
    assert (told.id, told.model_name, told.model_version) == ("r1", "digits", "1")
    assert told.raw_output_contents
    assert not told.outputs[0].HasField("contents")


def test_typed_contents_are_answered_in_typed_contents(client, direct):
    x = image(1)
    answer = client._client_stub.ModelInfer(typed(fp32_contents=x.ravel().tolist()))
    assert not answer.raw_output_contents
    np.testing.assert_allclose(answer.outputs[0].contents.fp32_contents, direct(x).ravel(), rtol=1e-5)


@pytest.mark.parametrize("datatype", list(DTYPES))
def test_every_datatype_goes_through_raw(client, datatype):
    kinds = [t.name[3:] for t in client.get_model_metadata("echo").inputs]
    values = {kind: sample(kind) for kind in kinds}
    tensors = [t for kind, value in values.items() for t in given(value, kind, f"in_{kind}")]
    answer = client.infer("echo", tensors, outputs=[triton.InferRequestedOutput(f"out_{datatype}")])
    got = answer.as_numpy(f"out_{datatype}")
    if datatype == "BYTES":
        got = np.array([x.decode() for x in got.ravel()], object).reshape(got.shape)
    np.testing.assert_array_equal(got, values[datatype])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_packed(client, algorithm):
    assert client.infer("digits", given(image(64)), compression_algorithm=algorithm).as_numpy("logits").shape == (64, 10)


def test_many_at_once_each_get_their_own_rows(client, direct):
    done, answers = threading.Semaphore(0), {}

    def ask(i):
        def told(result, error):
            answers[i] = error or result.as_numpy("logits")
            done.release()

        client.async_infer("digits", given(image(1, seed=i)), told)

    for i in range(64):
        ask(i)
    for _ in range(64):
        assert done.acquire(timeout=30)
    for i, answer in answers.items():
        np.testing.assert_allclose(answer, direct(image(1, seed=i)), rtol=1e-4, atol=1e-5)


def test_the_asyncio_client(shared):
    async def talk():
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{shared.server.grpc_port}") as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(*(client.infer("digits", given(image(1, seed=i))) for i in range(8)))
            with pytest.raises(InferenceServerException, match="unknown"):
                await client.infer("digits", given(image()), outputs=[triton_aio.InferRequestedOutput("nope")])
            return [a.as_numpy("logits").shape for a in answers]

    assert asyncio.run(talk()) == [(1, 10)] * 8


@pytest.mark.parametrize(
    ("model", "version", "x", "status", "words"),
    [
        ("nope", "", image(1), "NOT_FOUND", "'nope'"),
        ("digits", "7", image(1), "NOT_FOUND", "no version '7'"),
        ("digits", "", image(1).reshape(1, 64), "INVALID_ARGUMENT", "shape [1, 64], must be"),
        ("digits", "", np.zeros((0, 1, 8, 8), np.float32), "INVALID_ARGUMENT", "no rows"),
        ("digits", "", np.full((1, 1, 8, 8), 99, np.float32), "INVALID_ARGUMENT", "outside 0.0..16.0"),
        ("digits", "", np.full((1, 1, 8, 8), np.nan, np.float32), "INVALID_ARGUMENT", "NaN"),
    ],
)
def test_errors_reach_the_caller_in_words(client, model, version, x, status, words):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, given(x), model_version=version)
    assert caught.value.status() == f"StatusCode.{status}"
    assert words in caught.value.message()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r.inputs[0].contents.fp32_contents.pop(), "63 values, but shape [1, 1, 8, 8] has 64"),
        (lambda r: r.raw_input_contents.append(b"\0" * 256), "contents beside raw_input_contents"),
        (lambda r: r.raw_input_contents.extend([b"", b""]), "2 buffers for 1 inputs"),
        (lambda r: r.inputs[0].contents.int_contents.append(1), "int_contents is filled"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "no typed contents"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP8"), "datatype must be one of"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "0 or more"),
        (lambda r: r.inputs.append(r.inputs[0]), "occurs twice"),
        (lambda r: setattr(r.inputs[0], "name", ""), "is missing"),
        (lambda r: r.inputs.pop(), "1 to 256"),
        (lambda r: setattr(r, "id", "x" * 201), "at most 200"),
        (lambda r: r.parameters["timeout"].__setattr__("string_param", "soon"), "timeout"),
    ],
)
def test_a_broken_request_is_named(client, spoil, words):
    request = typed(fp32_contents=image(1).ravel().tolist())
    spoil(request)
    with pytest.raises(triton.grpc.RpcError, match="INVALID_ARGUMENT") as caught:
        client._client_stub.ModelInfer(request)
    assert words in caught.value.details()


def test_bytes_that_are_no_message_are_refused(shared):
    with triton.grpc.insecure_channel(f"127.0.0.1:{shared.server.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(triton.grpc.RpcError, match=r"not a inference\.ModelInferRequest") as caught:
            call(b"\xff\xff\xff")
    assert caught.value.code() == triton.grpc.StatusCode.INVALID_ARGUMENT


def test_shared_memory_and_loading_are_refused(client):
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.get_system_shared_memory_status()
    tensor = triton.InferInput("image", [1, 1, 8, 8], "FP32")
    tensor.set_shared_memory("region", 256)
    with pytest.raises(InferenceServerException, match="shared memory is not served"):
        client.infer("digits", [tensor])
    with pytest.raises(InferenceServerException, match="not loaded or unloaded by request"):
        client.load_model("digits")

"""One span per request when a provider is configured, and nothing at all when none is."""

import pytest
import tritonclient.grpc as triton
from opentelemetry import trace
from tritonclient.utils import InferenceServerException

from spoke_agent.server.handlers.tracing import find_tracing
from tests.spoke_agent.server.grpc.test_tritonclient_grpc import given
from tests.spoke_agent.server.sites import image

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans(trace.TracerProvider):
    """A provider that keeps what it is told."""

    def __init__(self):
        self.ended = []

    def get_tracer(self, *args, **kwargs):
        return Tracer(self)


class Tracer(trace.Tracer):
    def __init__(self, spans):
        self.spans = spans

    def start_span(self, name, context=None, kind=None, attributes=None, links=None, start_time=None, **kwargs):
        return Span(self.spans, name, trace.get_current_span(context).get_span_context(), kind, attributes, start_time)

    def start_as_current_span(self, *args, **kwargs):
        raise NotImplementedError


class Span(trace.NonRecordingSpan):
    def __init__(self, spans, name, parent, kind, attributes, start):
        super().__init__(parent)
        self.spans, self.name, self.parent, self.kind, self.attributes, self.start = spans, name, parent, kind, attributes, start
        self.status = None

    def set_status(self, status, description=None):
        self.status = status

    def end(self, end_time=None):
        self.spans.ended.append(self)


@pytest.fixture
def spans(monkeypatch):
    provider = Spans()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return provider


def test_without_a_provider_nothing_is_watched(shared):
    assert find_tracing() is None
    assert shared.server._tcp.on_answer is None


def test_http_requests_are_spans(spans, site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": image().ravel().tolist()}
    assert running.infer({"inputs": [tensor]}, headers={"traceparent": PARENT}).status_code == 200
    assert running.infer({"inputs": []}, model="nope").status_code == 404
    good, bad = spans.ended
    assert good.name == "POST /v2/models/digits/infer"
    assert good.kind is trace.SpanKind.SERVER
    assert good.attributes["http.response.status_code"] == 200
    assert f"{good.parent.trace_id:032x}" == PARENT.split("-")[1]
    assert (bad.attributes["http.response.status_code"], bad.status, bad.parent.is_valid) == (404, None, False)


def test_grpc_calls_are_spans(spans, site, run, eventually):
    site.slots(champion=site.publish(1))
    running = run(site, grpc_port=0)
    with triton.InferenceServerClient(f"127.0.0.1:{running.server.grpc_port}") as client:
        client.infer("digits", given(image()), headers={"traceparent": PARENT})
        with pytest.raises(InferenceServerException):
            client.infer("nope", given(image()))
    eventually(lambda: len(spans.ended) == 2)
    good, bad = spans.ended
    assert good.name == "inference.GRPCInferenceService/ModelInfer"
    assert (good.attributes["rpc.grpc.status_code"], bad.attributes["rpc.grpc.status_code"]) == (0, 5)
    assert f"{good.parent.span_id:016x}" == PARENT.split("-")[2]

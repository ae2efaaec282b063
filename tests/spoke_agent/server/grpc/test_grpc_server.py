"""Starting, guarding, deadlines, load and swaps over gRPC."""

import builtins
import sys
import threading
from datetime import UTC, datetime

import numpy as np
import pytest
import tritonclient.grpc as triton
from click.testing import CliRunner
from tritonclient.utils import InferenceServerException

from spoke_agent.cli.serve import serve
from spoke_agent.server.app.server import GrpcMissing, ServeRefused
from spoke_agent.server.http.transport import HttpLimits
from tests.spoke_agent.server.grpc.test_tritonclient_grpc import given
from tests.spoke_agent.server.sites import Site, image


def connected(running):
    return triton.InferenceServerClient(f"127.0.0.1:{running.server.grpc_port}")


def status(caught) -> str:
    return caught.value.status().removeprefix("StatusCode.")


def test_the_port_is_written_while_it_listens(site, run):
    site.slots(champion=site.publish(1))
    running = run(site, grpc_port=0)
    assert (site.home / "run/grpc.port").read_text() == str(running.server.grpc_port)
    with connected(running) as client:
        assert client.is_server_ready()
    running.close()
    assert not (site.home / "run/grpc.port").exists()


def test_a_taken_port_is_said(site, run, tmp_path):
    first = run(site, grpc_port=0)
    with pytest.raises(ServeRefused, match="cannot serve gRPC on"):
        run(Site(tmp_path / "other"), grpc_port=first.server.grpc_port)


def test_without_the_library_the_extra_is_named(site, run, monkeypatch):
    for name in [m for m in sys.modules if m.startswith("spoke_agent.server.grpc")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "grpc":
            raise ModuleNotFoundError("No module named 'grpc'", name="grpc")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(GrpcMissing, match="not installed") as caught:
        run(site, grpc_port=0)
    assert "spokeshave[grpc]" in caught.value.hint
    assert caught.value.exit == 2


def test_without_the_option_there_is_no_grpc(shared, site, run):
    assert run(site).server.grpc_port is None


def test_the_command_line_has_the_port():
    assert "--grpc-port" in CliRunner().invoke(serve, ["--help"]).output


def test_a_known_model_that_is_not_loaded_is_unavailable(site, run):
    site.slots(champion=site.publish(1, golden_offset=5.0))
    with connected(run(site, grpc_port=0)) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("digits")
        with pytest.raises(InferenceServerException, match="no version is loaded") as caught:
            client.infer("digits", given(image()))
        assert status(caught) == "UNAVAILABLE"
        assert client.get_model_repository_index().models[0].state == "UNAVAILABLE"


def test_a_deadline_that_cannot_be_kept_is_told(site, run):
    site.slots(champion=site.publish(1))
    running = run(site, grpc_port=0)
    batcher = running.server.models.live["digits"].answering.batcher
    with connected(running) as client:
        client.infer("digits", given(image()))
        batcher.depth_rows += (rows := int(1.0 / batcher.cost.row_s))  # a second of work waits
        for how in ({"timeout": 100_000}, {"client_timeout": 0.2}):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("digits", given(image()), **how)
            assert status(caught) == "DEADLINE_EXCEEDED"
        batcher.depth_rows += 10 * rows
        with pytest.raises(InferenceServerException, match="queue is full") as caught:
            client.infer("digits", given(image()))
        assert status(caught) == "UNAVAILABLE"
        batcher.depth_rows -= 11 * rows
        assert client.infer("digits", given(image()), timeout=5_000_000, client_timeout=10).as_numpy("logits").shape == (1, 10)
    stats = running.control.stats().models["digits"]
    assert stats.shed == 3


def test_a_token_is_asked_for_but_not_for_health(site, run, tmp_path):
    site.slots(champion=site.publish(1))
    (tmp_path / "token").write_text("a-token-of-the-shop")
    with connected(run(site, grpc_port=0, token_file=tmp_path / "token")) as client:
        assert client.is_server_live()
        for headers in ({}, {"authorization": "Bearer wrong"}):
            with pytest.raises(InferenceServerException, match="bearer token") as caught:
                client.infer("digits", given(image()), headers=headers)
            assert status(caught) == "UNAUTHENTICATED"
        told = {"authorization": "Bearer a-token-of-the-shop"}
        assert client.infer("digits", given(image()), headers=told).as_numpy("logits").shape == (1, 10)


def test_tls_is_that_of_http(site, run, session_ca, tmp_path):
    site.slots(champion=site.publish(1))
    files = session_ca.issue_server(tmp_path / "tls", ["localhost"], now=datetime.now(UTC))
    running = run(site, grpc_port=0, tls_certificate=files.certificate, tls_key=files.key)
    with triton.InferenceServerClient(
        f"localhost:{running.server.grpc_port}", ssl=True, root_certificates=str(files.ca)
    ) as client:
        assert client.infer("digits", given(image())).as_numpy("logits").shape == (1, 10)


def test_too_many_bytes_are_refused(site, run):
    site.slots(champion=site.publish(1))
    with connected(run(site, grpc_port=0, limits=HttpLimits(body_bytes=100_000))) as client:
        for algorithm in (None, "gzip"):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("digits", given(np.zeros((1000, 1, 8, 8), np.float32)), compression_algorithm=algorithm)
            assert status(caught) == "RESOURCE_EXHAUSTED"
        assert client.infer("digits", given(image())).as_numpy("logits").shape == (1, 10)


def test_an_adapter_is_asked_for_by_parameter(site, run):
    slot = site.publish(1)
    site.slots(champion=slot, adapter=site.adapter(slot, winner=3))
    with connected(run(site, grpc_port=0)) as client:
        assert client.infer("digits", given(image(4))).as_numpy("logits").argmax(1).tolist() == [3] * 4
        own = client.infer("digits", given(image(4)), parameters={"adapter": "none"}).as_numpy("logits")
        assert np.abs(own).max() < 1000
        with pytest.raises(InferenceServerException, match="is not loaded") as caught:
            client.infer("digits", given(image()), parameters={"adapter": "other"})
        assert status(caught) == "NOT_FOUND"


def test_swaps_fail_no_call(site, run):
    slots = [site.publish(v) for v in (1, 2)]
    site.slots(champion=slots[0])
    running = run(site, grpc_port=0)
    stop, failed, seen = threading.Event(), [], set()

    def ask():
        with connected(running) as client:
            while not stop.is_set():
                try:
                    seen.add(client.infer("digits", given(image())).get_response().model_version)
                except Exception as e:
                    failed.append(e)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(6):
        site.slots(champion=slots[(i + 1) % 2])
        running.control.reconcile()
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert seen == {"1", "2"}


def test_rows_are_captured_under_the_callers_id(site, run, eventually):
    site.slots(champion=site.publish(1))
    running = run(site, grpc_port=0)
    with connected(running) as client:
        client.infer("digits", given(image()), request_id="g1")
    label = {"id": "g1", "label": 4}
    eventually(lambda: running.http.post("/v2/models/digits/feedback", json=label).json()["known"])


def test_health_answers_while_every_thread_waits(site, run):
    site.slots(champion=site.publish(1))
    running = run(site, grpc_port=0)
    version = running.server.models.live["digits"].answering
    entered = threading.Event()
    real = version.batcher.submit
    jobs = []

    def hold(job):
        jobs.append(job)
        if len(jobs) == 16:  # as many as there are threads
            entered.set()

    version.batcher.submit = hold
    version.batcher.depth_rows += 1  # so that nothing runs past the queue
    with connected(running) as client:
        done = threading.Semaphore(0)
        for _ in range(40):
            client.async_infer("digits", given(image()), lambda result, error: done.release())
        assert entered.wait(30)
        assert client.is_server_live(client_timeout=20)
        version.batcher.submit = real
        version.batcher.depth_rows -= 1
        running.loop.call_soon_threadsafe(lambda: [real(job) for job in jobs])
        for _ in range(40):
            assert done.acquire(timeout=30)

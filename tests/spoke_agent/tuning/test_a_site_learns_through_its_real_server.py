"""The whole round with the real serving process: requests, feedback, capture, drift, tuning, and the adapter answering."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from hub.train.corruptions import turn
from hub.train.datasets import digits
from model_formats.package import open_package, pack
from spoke_agent.adapters.store import AdapterStore
from spoke_agent.data.store import open_data
from spoke_agent.drift.monitor import DriftMonitor, WatchedModel
from spoke_agent.outbox.operations import latency_buckets, read_metrics
from spoke_agent.outbox.outbox import Outbox
from spoke_agent.server.app.server import InferenceServer
from spoke_agent.server.settings import ServeSettings
from spoke_agent.server_api.client import ControlClient
from spoke_agent.site.slots import ModelSlots, Slot, Slots, write_slots
from spoke_agent.tuning.tuner import Tuner
from sync.core.clock import SystemClock
from sync.core.types import SpokeId
from sync.protocol.egress import DriftVerdict, EgressRecord
from sync.store import BlobStore
from sync.trust.keys import device_signer
from tests.samples.adaptable import write_adaptable


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    index = pack(write_adaptable(tmp_path / "source"), home)
    slot = Slot(version=1, index=index, variant="onnx-fp32")
    write_slots(home / "slots.json", Slots(models={"digits": ModelSlots(champion=slot)}))
    return home


@pytest.fixture
def http(home: Path) -> Iterator[httpx.Client]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> InferenceServer:
        server = InferenceServer(ServeSettings(home=home))
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        yield client
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def infer(http: httpx.Client, images: np.ndarray, name: str) -> np.ndarray:
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    answer = http.post("/v2/models/digits/infer", json={"id": name, "inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    found = next(o for o in answer.json()["outputs"] if o["name"] == "logits")
    return np.array(found["data"]).reshape(found["shape"])


def test_a_turned_scanner_is_noticed_learned_and_answered(
    home: Path, http: httpx.Client, eventually: Callable[[Callable[[], object]], None]
):
    share = digits().sites["frankfurt"]
    images, labels = turn(share.inputs["image"], 35), share.labels
    before = (infer(http, images[200:], "before").argmax(axis=1) == labels[200:]).mean()
    for start in range(0, 200, 10):
        infer(http, images[start : start + 10], f"own-{start}")
        body = {"id": f"own-{start}", "label": [int(v) for v in labels[start : start + 10]]}
        assert http.post("/v2/models/digits/feedback", json=body).status_code == 200
    data, clock, signer = open_data(home), SystemClock(), device_signer()
    eventually(lambda: data.count("digits") == 400)
    assert latency_buckets(read_metrics(home / "run" / "server.sock") or "")[-1] == 20  # 21 requests, in whole tens
    eventually(lambda: sum(b.rows for b in data.labelled("digits")) == 200)

    left: list[EgressRecord] = []
    box = Outbox(
        home,
        SpokeId("frankfurt"),
        "gdpr",
        clock=clock,
        send=lambda _, envelope: left.append(EgressRecord.parse(envelope)),
        seal=lambda record: record.canonical(),
    )
    blobs, index = BlobStore(home), next(data.batches("digits")).index
    monitor = DriftMonitor(
        home / "drift",
        data,
        box,
        watched=lambda: [WatchedModel("digits", 1, index)],
        profile=lambda found: open_package(blobs, found).profile,
        clock=clock,
    )
    monitor.tick()
    (record,) = left
    assert isinstance(record.body, DriftVerdict)
    assert record.body.level == "alarm"

    control = ControlClient(home / "run" / "control.sock")
    adapter_store = AdapterStore(home / "adapters", signer=signer, key=signer.public_key)
    outcome = Tuner(home, blobs=blobs, data=data, adapter_store=adapter_store, clock=clock, server=control).tune("digits")
    assert outcome.serving
    assert control.serving()[0].adapted
    after = (infer(http, images[200:], "after").argmax(axis=1) == labels[200:]).mean()
    assert after > before + 0.2
    eventually(lambda: any(b.adapter == outcome.kept.record.name for b in data.batches("digits")))
    for part in (control, box, data):
        part.close()

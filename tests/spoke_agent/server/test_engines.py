"""Which engine runs a version: by measurement, remembered, and never at the price of an adapter."""

import json

import numpy as np

from spoke_agent.server.models.loader import load_version
from spoke_agent.server.settings import ServeSettings
from sync.core.types import Reason
from sync.store import BlobStore
from tests.spoke_agent.server.sites import image
from tests.spoke_agent.server.test_requests import body

BOTH = ("onnxruntime", "openvino")


def test_openvino_gives_the_same_answers(site, run):
    site.slots(champion=site.publish(1, engines=("openvino",)))
    running = run(site)
    assert running.http.get("/v2/models/digits").json()["parameters"]["engine"] == "openvino"
    assert running.control.serving()[0].engine == "openvino"
    got = np.array(running.infer(body(3)).json()["outputs"][0]["data"]).reshape(3, 10)
    from model_formats.runtimes.select import open_session

    session = open_session(site.weights(running.server.models.live["digits"].slots.champion))
    np.testing.assert_allclose(got, session.run({"image": image(3)}, ["logits"])[0], rtol=1e-3, atol=1e-3)


def test_an_adapter_where_only_openvino_runs_leaves_the_hubs_head(site, run):
    slot = site.publish(1, engines=("openvino",))
    site.slots(champion=slot, adapter=site.adapter(slot))
    running = run(site)
    state = running.control.reconcile().models["digits"]
    assert state.champion.loaded
    assert not state.adapter.loaded
    assert running.infer(body()).status_code == 200


def test_the_choice_is_measured_once_and_remembered(site):
    settings, store = ServeSettings(home=site.home), BlobStore(site.home)
    slot = site.publish(1, engines=BOTH)
    loaded = load_version(settings, store, "digits", slot, adaptable=False)
    remembered = json.loads((site.home / "run/engines.json").read_text())
    assert list(remembered.values()) == [{"engine": loaded.engine, "mode": "fast"}]
    other = {"engine": "openvino", "mode": "fast"}
    (site.home / "run/engines.json").write_text(json.dumps(dict.fromkeys(remembered, other)))
    assert load_version(settings, store, "digits", slot, adaptable=False).engine == "openvino"
    assert load_version(settings, store, "digits", slot, adaptable=True).engine == "onnxruntime"


def test_an_engine_that_is_not_allowed_here_is_not_used(site, run):
    site.slots(champion=site.publish(1, engines=("openvino",)))
    running = run(site, engines=("onnxruntime",))
    state = running.control.reconcile().models["digits"].champion
    assert state.reason is Reason.ENGINE_MISSING
    assert "openvino" in state.detail


def test_a_damaged_memory_of_choices_is_only_a_lost_measurement(site, run):
    (site.home / "run").mkdir()
    (site.home / "run/engines.json").write_text("{")
    site.slots(champion=site.publish(1, engines=BOTH))
    running = run(site)
    assert running.infer(body()).status_code == 200

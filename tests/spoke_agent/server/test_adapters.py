"""Locally tuned heads: by default, by request, never on another base."""

from datetime import UTC, datetime

import numpy as np
import pytest

from model_formats.core.types import digest_of_file
from model_formats.documents.package_spec import AdapterPoint
from model_formats.package.adapter import Head
from spoke_agent.adapters.gate import GateVerdict
from spoke_agent.adapters.store import AdapterRecord, AdapterStore
from sync.trust.keys import device_signer, save_signer
from tests.spoke_agent.server.sites import D, K
from tests.spoke_agent.server.test_requests import body


def answer(running, **parameters):
    got = running.infer(body(4, parameters=parameters)).json()
    return np.array(got["outputs"][0]["data"]).reshape(4, -1).argmax(axis=1).tolist()


def test_the_default_adapter_answers_and_a_parameter_chooses(site, run):
    one = site.publish(1)
    site.slots(champion=one)
    running = run(site)
    base = answer(running)
    site.slots(champion=one, adapter=site.adapter(one, winner=3))
    state = running.control.reconcile().models["digits"]
    assert state.adapter.loaded
    assert answer(running) == [3] * 4
    assert answer(running, adapter="none") == base
    assert answer(running, adapter="local") == [3] * 4
    assert running.control.serving()[0].adapted


def test_erasing_the_adapter_brings_the_hubs_head_back(site, run):
    one = site.publish(1)
    site.slots(champion=one, adapter=site.adapter(one))
    running = run(site)
    site.slots(champion=one)
    running.control.reconcile()
    assert not running.control.serving()[0].adapted
    assert running.infer(body(parameters={"adapter": "local"})).status_code == 404


def test_an_adapter_of_another_base_is_not_used(site, run):
    one, two = site.publish(1), site.publish(2)
    site.slots(champion=two, adapter=site.adapter(one))
    running = run(site)
    state = running.control.reconcile().models["digits"]
    assert not state.adapter.loaded
    assert "fitted on" in state.adapter.detail
    assert not running.control.serving()[0].adapted
    assert running.infer(body()).status_code == 200


def test_a_lost_adapter_file_leaves_the_hubs_head(site, run):
    one = site.publish(1)
    slot = site.adapter(one)
    (site.home / "adapters" / "local.onnx_adapter").unlink()
    site.slots(champion=one, adapter=slot)
    running = run(site)
    assert not running.control.reconcile().models["digits"].adapter.loaded
    assert running.infer(body()).status_code == 200


def test_requests_with_different_heads_in_one_turn_keep_apart(site, run):
    import threading

    one = site.publish(1)
    site.slots(champion=one, adapter=site.adapter(one, winner=3))
    running = run(site)
    base = answer(running, adapter="none")
    wrong: list[object] = []

    def ask(name: str, expected: list[int]) -> None:
        for _ in range(40):
            if (got := answer(running, adapter=name)) != expected:
                wrong.append((name, got))

    callers = [threading.Thread(target=ask, args=a) for a in (("none", base), ("local", [3] * 4)) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


POINT = AdapterPoint(features="features", weight="head.weight", bias="head.bias", output="logits")


def shelve(site, slot, name, winner, *, signer, passed=True, base=None):
    """A tuned head that always answers one class, with its signed record."""
    gate = GateVerdict(
        passed=passed, rows=9, wins=9, losses=0, p=0.01, before=0.1, after=0.9, anchors=9, anchors_before=0.9, anchors_after=0.9
    )

    def record(file):
        return AdapterRecord(
            name=name,
            model="digits",
            version=slot.version,
            index=slot.index,
            base=base or digest_of_file(site.weights(slot)),
            file=file,
            created=datetime(2026, 1, 1, tzinfo=UTC),
            origin="operator",
            rows=9,
            per_class=(9,),
            first_batch=1,
            last_batch=1,
            penalty=1.0,
            gate=gate,
        )

    bias = np.zeros(K, np.float32)
    bias[winner] = 1000
    head = Head(np.zeros((D, K), np.float32), bias)
    AdapterStore(site.home / "adapters", signer=signer, key=signer.public_key).add(name, POINT, head, record)


@pytest.fixture
def device(site):
    signer = device_signer()
    save_signer(site.home / "identity" / "device.key", signer)
    return signer


def test_adapters_of_the_shelf_are_chosen_by_name(site, run, device):
    one = site.publish(1)
    shelve(site, one, "winter", 3, signer=device)
    shelve(site, one, "summer", 5, signer=device)
    site.slots(champion=one)
    running = run(site)
    assert answer(running, adapter="winter") == [3] * 4
    assert answer(running, adapter="summer") == [5] * 4
    assert answer(running) == answer(running, adapter="none")
    assert not running.control.serving()[0].adapted


def test_an_erased_adapter_is_gone_after_the_next_reconcile(site, run, device):
    one = site.publish(1)
    shelve(site, one, "winter", 3, signer=device)
    site.slots(champion=one)
    running = run(site)
    AdapterStore(site.home / "adapters", signer=device, key=device.public_key).erase("winter")
    running.control.reconcile()
    assert running.infer(body(parameters={"adapter": "winter"})).status_code == 404


@pytest.mark.parametrize("fault", ["closed gate", "another base", "another signer", "another file"])
def test_an_adapter_whose_record_does_not_allow_it_is_not_offered(site, run, device, fault):
    one = site.publish(1)
    base = "sha256:" + "0" * 64 if fault == "another base" else None
    signer = device_signer() if fault == "another signer" else device
    shelve(site, one, "winter", 3, signer=signer, passed=fault != "closed gate", base=base)
    if fault == "another file":
        next((site.home / "adapters" / "winter").glob("*.onnx_adapter")).write_bytes(b"other")
    site.slots(champion=one)
    running = run(site)
    refused = running.infer(body(parameters={"adapter": "winter"}))
    assert refused.status_code == 404
    assert "none" in refused.json()["error"]
    assert running.infer(body()).status_code == 200

"""Locally tuned heads: by default, by request, never on another base."""

import numpy as np

from tests.spoke_agent.serve.test_requests import body


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

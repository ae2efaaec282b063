"""Memory that the engine lends to a lone caller's requests, and uses again for the next: nobody sees another's values in it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from model_formats.core.runtime import RunFailed
from model_formats.runtimes.select import open_session
from spoke_agent.data.store import open_data
from tests.spoke_agent.server.sites import cnn, digits_contract, echo, echo_golden, image, one_node
from tests.spoke_agent.server.test_a_lone_caller import champion
from tests.spoke_agent.server.test_requests import expected

# ---- the engine


def opened(folder, proto, engine="onnxruntime"):
    onnx.save(proto, folder / "model.onnx")
    return open_session(folder / "model.onnx", engine=engine)


def asked(session, inputs, names):
    return session.in_place(inputs, dict(zip(names, session.run(inputs, names), strict=True)))


def test_a_run_in_place_gives_what_a_run_gives(tmp_path):
    session, names = opened(tmp_path, cnn(1)), ["features", "logits"]
    place = asked(session, {"image": image(2)}, names)
    for seed in range(3):
        place.inputs["image"][...] = image(2, seed)
        for got, wanted in zip(place.run(), session.run({"image": image(2, seed)}, names), strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert place.run()[0] is place.run()[0]


def test_a_place_is_not_made_of_what_it_was_asked_for(tmp_path):
    session, given = opened(tmp_path, cnn(1)), image(1)
    found = session.run({"image": given}, ["logits"])
    place = session.in_place({"image": given}, {"logits": found[0]})
    place.inputs["image"][...] = 0
    place.run()
    np.testing.assert_array_equal(given, image(1))
    np.testing.assert_array_equal(found[0], session.run({"image": given}, ["logits"])[0])


def test_an_adapter_answers_in_place_too(site, tmp_path):
    session, slot = opened(tmp_path, cnn(1)), site.publish(1)
    adapter = session.load_adapter(str(site.home / "adapters" / site.adapter(slot, winner=3).name) + ".onnx_adapter", "local")
    place = asked(session, {"image": image(1)}, ["logits"])
    winners = [int(place.run(head)[0].argmax()) for head in (None, adapter, None)]
    assert winners[1] == 3 != winners[0] == winners[2]


@pytest.mark.parametrize("kind", ["text", "chance"])
def test_models_that_have_no_place(tmp_path, kind):
    if kind == "text":
        session, inputs = opened(tmp_path, echo({"BYTES": TensorProto.STRING})), echo_golden({"BYTES": TensorProto.STRING})
    else:
        session, inputs = opened(tmp_path, one_node("RandomNormalLike", TensorProto.FLOAT)), {"x": np.zeros(8, np.float32)}
    names = [output.name for output in session.outputs]
    assert asked(session, inputs, names) is None


def test_an_output_of_another_size_than_its_place_is_a_failed_run(tmp_path):
    session = opened(tmp_path, one_node("NonZero", TensorProto.INT64))
    place = asked(session, {"x": np.array([0, 1, 1, 0], np.float32)}, ["y"])
    place.inputs["x"][...] = [1, 0, 0, 1]
    assert place.run()[0].tolist() == [[0, 3]]
    for other in ([1, 1, 1, 0], [1, 0, 0, 0]):
        place.inputs["x"][...] = other
        with pytest.raises(RunFailed):
            place.run()


def test_openvino_has_no_place(tmp_path):
    session = opened(tmp_path, cnn(1), "openvino")
    assert asked(session, {"image": image(1)}, ["logits"]) is None


# ---- the server


def picture(seed, rows=1, **extra):
    x = image(rows, seed).astype(int)
    return {**extra, "inputs": [{"name": "image", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}]}


def logits(running, seed):
    return expected(running, image(1, seed)).ravel()


def answered(answer):
    return np.array(answer.json()["outputs"][0]["data"], np.float32)


def test_each_answer_and_each_stored_row_is_its_own(site, run, eventually):
    site.slots(champion=site.publish(1))
    running = run(site)
    for seed in range(20):
        got = answered(running.infer(picture(seed, id=f"r{seed}")))
        np.testing.assert_array_equal(got, logits(running, seed))
    assert [memory is not None for memory in champion(running).lends.values()] == [True]
    eventually(lambda: running.server.capture.stored_rows == 20)
    store = open_data(site.home)
    try:
        stored = list(store.batches("digits"))
    finally:
        store.close()
    rows = [row for batch in stored for row in zip(batch.inputs["image"], batch.outputs["logits"], strict=True)]
    for seed, (given, found) in enumerate(rows):
        np.testing.assert_array_equal(given, image(1, seed)[0])
        np.testing.assert_array_equal(found, logits(running, seed))


def test_a_candidate_sees_each_row_with_its_answer(site, run, eventually, monkeypatch):
    monkeypatch.setattr("spoke_agent.server.models.shadow._IDLE_S", 0.05)  # rows wait for it
    site.slots(champion=site.publish(1), candidate=site.publish(2, proto=cnn(28)))
    running = run(site)
    for seed in range(20):
        running.infer(picture(seed))
    shadow = lambda: running.control.stats().models["digits"].shadow  # noqa: E731 - asked again and again
    eventually(lambda: shadow().rows == 20)
    other = running.server.models.live["digits"].candidate.loaded_version.session
    theirs = [int(other.run({"image": image(1, seed)}, ["logits"])[0].argmax()) for seed in range(20)]
    differ = sum(int(logits(running, seed).argmax()) != their for seed, their in enumerate(theirs))
    assert 0 < differ < 20
    assert shadow().disagreements == differ


def test_what_goes_to_the_lane_after_all_keeps_its_values(site, run, monkeypatch):
    site.slots(champion=site.publish(1, contract=digits_contract("count")))
    running = run(site)
    for seed in range(3):
        running.infer(picture(seed))
    version, lent, waiting = champion(running), [], []
    submit = version.batcher.submit
    monkeypatch.setattr(version.batcher, "submit", lambda job: (waiting.append(job), submit(job)))
    run_direct = version.run_direct
    monkeypatch.setattr(version, "run_direct", lambda *given: (lent.append(given[3]), run_direct(*given))[1])
    wild = picture(4)
    wild["inputs"][0]["data"][0] = 99.0
    first = answered(running.infer(wild))
    inputs = waiting[0].inputs["image"]
    np.testing.assert_array_equal(answered(running.infer(picture(5))), logits(running, 5))
    assert [memory is None for memory in lent] == [False, False]
    assert inputs.ravel()[0] == 99
    np.testing.assert_array_equal(first, expected(running, inputs).ravel())


def test_every_version_lends_its_own(site, run):
    one, two = site.publish(1), site.publish(2)
    site.slots(champion=one)
    running = run(site)
    for slot in (one, two, one):
        site.slots(champion=slot)
        running.control.reconcile()
        for seed in range(3):
            np.testing.assert_array_equal(answered(running.infer(picture(seed))), logits(running, seed))


def test_a_large_request_is_lent_nothing(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    for _ in range(3):
        assert running.infer(picture(1, rows=300)).status_code == 200
    assert list(champion(running).lends.values()) == [None]

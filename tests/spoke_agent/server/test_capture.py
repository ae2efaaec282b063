"""Rows and labels reach the local store; when they cannot, callers do not notice."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spoke_agent.data.store import open_data
from spoke_agent.server.models.capture import Capture
from spoke_agent.server.models.version import Answered
from tests.spoke_agent.server.sites import image
from tests.spoke_agent.server.test_requests import body


def test_rows_and_labels_are_stored_with_the_version_that_answered(site, run, eventually):
    slot = site.publish(1)
    site.slots(champion=slot)
    running = run(site)
    outputs = running.infer(body(1, id="r1")).json()["outputs"][0]["data"]
    running.infer(body(3, id="r2"))
    assert running.http.post("/v2/models/digits/feedback", json={"id": "r1", "label": int(np.argmax(outputs))}).json() == {
        "known": True
    }
    assert running.http.post("/v2/models/digits/feedback", json={"id": "r2", "label": [1, 2, 3]}).json() == {"known": True}
    store = open_data(site.home)
    n, correct = store.labelled_accuracy("digits", slot.index)
    assert n == 4
    assert correct >= 1
    stored = list(store.batches("digits"))
    np.testing.assert_array_equal(stored[0].inputs["image"][:1], image(1))
    assert list(stored[0].outputs) == ["logits"]
    assert sum(batch.rows for batch in stored) == 4
    store.close()
    assert running.control.stats().captured_rows == 4


def test_a_label_for_an_unknown_request_waits(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    assert running.http.post("/v2/models/digits/feedback", json={"id": "later", "label": 3}).json() == {"known": False}


def test_bad_feedback_is_named(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    running.infer(body(2, id="two"))
    cases = [
        (b"{", 400, "JSON"),
        ({"label": 1}, 400, "id"),
        ({"id": "x"}, 400, "label"),
        ({"id": "two", "label": [1, 2, 3]}, 400, "2 rows"),
    ]
    for given, status, words in cases:
        kwargs = {"content": given} if isinstance(given, bytes) else {"json": given}
        answer = running.http.post("/v2/models/digits/feedback", **kwargs)
        assert answer.status_code == status
        assert words in answer.json()["error"]
    assert running.http.post("/v2/models/nope/feedback", json={"id": "x", "label": 1}).status_code == 404


def test_the_store_is_open_before_the_first_caller_comes(site, run):
    site.slots(champion=site.publish(1))
    assert run(site).control.stats().captured_rows == 0
    assert (site.home / "data.db").exists()


def test_a_lost_key_costs_rows_but_no_answers(site, run, eventually):
    site.slots(champion=site.publish(1))
    running = run(site)
    running.infer(body(id="a"))
    running.http.post("/v2/models/digits/feedback", json={"id": "a", "label": 1})
    running.close()
    (site.home / "identity" / "site.key").write_bytes(bytes(32))
    again = run(site)
    assert again.infer(body(5)).status_code == 200
    eventually(lambda: again.control.stats().capture_dropped_rows == 5)
    assert again.infer(body()).status_code == 200


def test_beyond_the_budget_rows_are_counted_not_kept(site, run, eventually):
    site.slots(champion=site.publish(1))
    running = run(site, capture_burst=10, capture_rows_s=0.001)
    for _ in range(3):
        running.infer(body(8))
    eventually(lambda: running.control.stats().captured_rows == 8)
    assert running.control.stats().capture_dropped_rows == 16


def test_with_capture_off_nothing_is_written(site, run):
    site.slots(champion=site.publish(1))
    running = run(site, capture=False)
    running.infer(body(id="a"))
    told = running.http.post("/v2/models/digits/feedback", json={"id": "a", "label": 1})
    assert (told.status_code, "Retry-After" in told.headers) == (501, False)
    assert "capture is switched off" in told.json()["error"]
    assert not Path(site.home / "data.db").exists()


class Kept:
    """A store that counts rows."""

    def __init__(self):
        self.rows = 0

    def append(self, batch):
        self.rows += batch.rows
        return self.rows

    def label(self, request_id, label):
        return False

    def close(self):
        pass


@pytest.mark.parametrize(("times", "side"), [(600, 8), (3, 700)], ids=["many rows", "large rows"])
def test_what_gathers_fast_is_stored_before_the_pause_is_over(monkeypatch, eventually, times, side):
    monkeypatch.setattr("spoke_agent.server.models.capture._PAUSE_S", 3600)
    store = Kept()
    capture = Capture(lambda: store, rows_s=1e6, burst=10_000, on_fault=pytest.fail)
    version = SimpleNamespace(
        model="digits", number=1, index="i", names=("logits",), signature=SimpleNamespace(inputs=())
    )  # what capture reads of one
    for _ in range(times):
        inputs, outputs = {"image": np.zeros((1, 1, side, side), np.float32)}, [np.zeros((1, 10), np.float32)]
        capture.watch(version, Answered(inputs, outputs, 1, [""], [1], ""))
    eventually(lambda: store.rows >= min(times, 512))
    capture.close()
    assert store.rows == times

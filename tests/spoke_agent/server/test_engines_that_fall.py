"""An engine that crashes on an instruction, or hangs, costs its trial: never the server, and never the version that answers."""

import json
import sys
from pathlib import Path

import pytest

from model_formats.package.golden import GoldenMismatch
from spoke_agent.doctor import champion
from spoke_agent.server.models.engine_choice import cpu_word
from spoke_agent.server.models.loader import load_version
from spoke_agent.server.settings import ServeSettings
from spoke_agent.site.home import SpokeHome
from sync.core.types import Reason
from sync.store import BlobStore
from tests.spoke_agent.server.sites import cnn
from tests.spoke_agent.server.test_requests import body

BOTH = ("onnxruntime", "openvino")
FALL = "os.kill(os.getpid(), signal.SIGILL)"
AT_IMPORT = """
import os, signal, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            {act}

sys.meta_path.insert(0, Finder())
"""
AT_OPENING = """
import os, signal
import onnxruntime

class Session(onnxruntime.InferenceSession):
    def __init__(self, path, options, **kwargs):
        try:
            options.get_session_config_entry("session.x64quantprecision")
        except RuntimeError:  # not set: the fast one
            os.kill(os.getpid(), signal.SIGILL)
        super().__init__(path, options, **kwargs)

onnxruntime.InferenceSession = Session
"""


@pytest.fixture
def children(tmp_path, monkeypatch):
    """Python code that every child process of this test runs at its start: what a bad CPU does to an engine, done for real."""

    def run(code: str) -> None:
        folder = tmp_path / "children"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return run


def choices(site) -> dict[str, dict[str, str]]:
    return json.loads((site.home / "run/engines.json").read_text())


def test_an_engine_that_crashes_is_left_out_and_the_other_serves(site, run, children):
    children(AT_IMPORT.format(names=["openvino"], act=FALL))
    site.slots(champion=site.publish(1, engines=BOTH))
    running = run(site)
    serving = running.control.serving()[0]
    assert (serving.engine, serving.mode) == ("onnxruntime", "fast")
    assert running.infer(body()).status_code == 200


def test_a_way_that_crashes_is_left_out_and_the_exact_one_serves(site, run, children):
    children(AT_OPENING)
    slot = site.publish(1)
    site.slots(champion=slot, adapter=site.adapter(slot))
    running = run(site)
    serving = running.control.serving()[0]
    assert (serving.engine, serving.mode, serving.adapted) == ("onnxruntime", "exact", True)
    assert running.http.get("/v2/models/digits").json()["parameters"]["mode"] == "exact"


def test_versions_in_different_modes_are_compared_as_ever(site, run, children, eventually):
    children(AT_OPENING)
    one = site.publish(1)
    site.slots(champion=one)
    running = run(site)
    children("")
    site.slots(champion=one, candidate=site.publish(2, proto=cnn(1, layers=2)))
    running.control.reconcile()
    stats = running.control.stats().models["digits"]
    assert (stats.champion.mode, stats.candidate.mode) == ("exact", "fast")
    running.infer(body(20))
    eventually(lambda: running.control.stats().models["digits"].shadow.rows == 20)
    assert running.control.stats().models["digits"].shadow.errors == 0


def test_where_every_way_crashes_the_server_lives_and_the_old_version_answers(site, run, children):
    site.slots(champion=site.publish(1, engines=BOTH))
    running = run(site)
    children(AT_IMPORT.format(names=list(BOTH), act=FALL))
    site.slots(champion=site.publish(2, engines=BOTH))
    state = running.control.reconcile().models["digits"].champion
    assert state.reason is Reason.LOAD_FAILED
    assert "SIGILL" in state.detail
    assert running.control.serving()[0].version == 1
    assert running.infer(body()).status_code == 200
    finding = champion.check(SpokeHome(site.home))
    assert finding is not None
    assert "digits@2 (onnx-fp32) is not loaded on this CPU" in finding.found
    assert "digits@1 answers" in finding.found


def test_an_engine_that_hangs_is_ended_and_left_out(site, run, children):
    children(AT_IMPORT.format(names=["openvino"], act="time.sleep(600)"))
    site.slots(champion=site.publish(1, engines=BOTH))
    running = run(site, trial_s=8.0)
    assert running.control.serving()[0].engine == "onnxruntime"


def test_a_machine_that_was_moved_chooses_again(site):
    settings, store = ServeSettings(home=site.home), BlobStore(site.home)
    slot = site.publish(1, engines=BOTH)
    here = load_version(settings, store, "digits", slot, adaptable=False).engine
    (key,) = choices(site)
    other = "openvino" if here == "onnxruntime" else "onnxruntime"
    old = key.replace(cpu_word(), "sse42-0123456789abcdef")
    path = site.home / "run/engines.json"
    path.write_text(json.dumps({old: {"engine": other, "mode": "fast"}}))
    load_version(settings, store, "digits", slot, adaptable=False)
    assert set(choices(site)) == {old, key}


def test_a_remembered_engine_that_is_not_to_be_used_any_more_is_forgotten(site):
    settings, store = ServeSettings(home=site.home), BlobStore(site.home)
    slot = site.publish(1)
    load_version(settings, store, "digits", slot, adaptable=False)
    (key,) = choices(site)
    (site.home / "run/engines.json").write_text(json.dumps({key: {"engine": "openvino", "mode": "fast"}}))
    assert load_version(settings, store, "digits", slot, adaptable=False).engine == "onnxruntime"
    assert choices(site) == {key: {"engine": "onnxruntime", "mode": "fast"}}


def test_where_no_child_can_be_started_the_golden_vectors_decide_here(site, monkeypatch):
    settings, store = ServeSettings(home=site.home), BlobStore(site.home)
    monkeypatch.setattr(sys, "executable", str(Path(site.home) / "no-python"))
    assert load_version(settings, store, "digits", site.publish(1), adaptable=False).golden.ok
    with pytest.raises(GoldenMismatch, match=r"onnxruntime: .*; onnxruntime \(exact\): "):
        load_version(settings, store, "digits", site.publish(2, golden_offset=5.0), adaptable=False)

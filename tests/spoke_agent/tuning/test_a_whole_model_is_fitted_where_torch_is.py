"""LoRA and full fine-tuning at a site: the same gate, the same shelf, and nothing of it leaves."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from hub.train.corruptions import turn
from hub.train.datasets import digits
from model_formats.core.runtime import AdapterRefused
from model_formats.core.types import digest_of_file
from model_formats.finetune import FitTerms, FitTooLong, TrainMissing
from model_formats.runtimes.select import open_session
from spoke_agent.adapters.errors import GateClosed, NotAdaptable
from spoke_agent.daemon.erasure import Scope, erase
from spoke_agent.server.models.loader import load_version
from spoke_agent.server.settings import ServeSettings
from spoke_agent.tuning.adapter_lifecycle import AdapterLifecycle
from spoke_agent.tuning.tuner import Tuner
from tests.samples.adaptable import packed_adaptable
from tests.spoke_agent.tuning.test_an_adapter_serves_and_stays_at_the_site import Packed, Site

QUICK = FitTerms(epochs=15)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed_adaptable(tmp_path_factory.mktemp("package"))


def a_site(home: Path, package: Packed, *, shuffled: bool = False) -> Site:
    site = Site(home, package)
    site.label(slice(0, 200), shuffled=shuffled)
    site.tuner = Tuner(
        home,
        blobs=site.blobs,
        data=site.data,
        adapter_store=site.adapter_store,
        clock=site.clock,
        server=site.server,
        fit_terms=QUICK,
    )
    return site


@pytest.fixture
def site(tmp_path: Path, package: Packed) -> Site:
    return a_site(tmp_path / "home", package)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_what_the_head_cannot_and_answers_as_it_was_judged(site: Site, method: str):
    head = site.tuner.tune("digits", use=False).verdict
    base = digest_of_file(site.blobs.path(site.tuner.base_of(site.slot(site.index))))
    kept = site.tuner.tune("digits", method=method).kept  # type: ignore[arg-type]
    assert kept.record.method == method
    assert kept.record.gate.after > head.after + 0.02
    assert kept.record.base == base == digest_of_file(site.blobs.path(base))
    assert site.model_slots.adapter == kept.record.slot.replace(probation=True)
    assert kept.record.shadow.rows == 200

    session = open_session(site.blobs.path(base))
    adapter = session.load_adapter(str(kept.file), kept.record.name)
    images, labels = turn(digits().sites["clinic"].inputs["image"], 35), digits().sites["clinic"].labels
    answers = session.run({"image": images}, ["logits"], adapter)[0]
    assert np.array_equal(answers, open_session(kept.file).run({"image": images}, ["logits"])[0])
    own = session.run({"image": images}, ["logits"])[0]
    assert (answers.argmax(axis=1) == labels).mean() > (own.argmax(axis=1) == labels).mean() + 0.25


def test_shuffled_labels_change_nothing_and_leave_nothing(tmp_path: Path, package: Packed):
    site = a_site(tmp_path / "home", package, shuffled=True)
    with pytest.raises(GateClosed, match="held-out rows"):
        site.tuner.tune("digits", method="full")
    assert site.model_slots.adapter is None
    assert [*site.adapter_store.folder.iterdir()] == []


def test_the_serving_process_loads_it_as_the_default_and_nothing_else_for_its_memory(site: Site):
    from spoke_agent.server.models.loader import load_adapter, stored_adapters

    kept = site.tuner.tune("digits", method="lora").kept
    settings = ServeSettings(home=site.home)
    loaded = load_version(settings, site.blobs, "digits", site.slot(site.index), adaptable=True)
    adapter = load_adapter(settings.folder.adapters, loaded, kept.record.slot)
    images = digits().sites["clinic"].inputs["image"][:8]
    given = loaded.session.run({"image": images}, ["logits"], adapter)[0]
    assert np.array_equal(given, open_session(kept.file).run({"image": images}, ["logits"])[0])
    assert stored_adapters(settings.folder, loaded) == {}


def test_a_model_with_another_face_or_a_damaged_one_is_refused(site: Site, tmp_path: Path):
    session = open_session(site.blobs.path(site.tuner.base_of(site.slot(site.index))))
    value = onnx.helper.make_tensor_value_info
    node, kind = onnx.helper.make_node("Identity", ["x"], ["y"]), onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph([node], "odd", [value("x", kind, ["n"])], [value("y", kind, ["n"])])
    odd = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "odd.onnx").write_bytes(odd.SerializeToString())
    with pytest.raises(AdapterRefused, match="inputs or outputs"):
        session.load_adapter(str(tmp_path / "odd.onnx"), "odd")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "odd.onnx").read_bytes()[:40])
    with pytest.raises(AdapterRefused, match="cannot open"):
        session.load_adapter(str(tmp_path / "cut.onnx"), "cut")


def test_erasing_one_of_its_rows_retires_it_and_sweeps_what_a_cut_off_fit_left(site: Site):
    kept = site.tuner.tune("digits", method="full").kept
    left = site.adapter_store.folder / ".cut-off"
    left.mkdir()
    (left / "0.onnx").write_bytes(kept.file.read_bytes())
    record = erase(site.home, site.data, Scope(("0-7",)), derived=site.tuner, clock=site.clock, signer=site.signer)
    assert record.adapters == (kept.record.name,)
    (head,) = site.adapter_store.all()  # fitted on what is left, so that the site is not left with the hub's
    assert (head.record.method, head.record.rows, head.record.origin) == ("head", 199, "erasure")
    assert not left.exists()
    assert not kept.file.exists()


def test_its_weights_are_nowhere_but_in_the_folder_that_never_leaves(site: Site):
    kept = site.tuner.tune("digits", method="full").kept
    fitted, base = kept.file.read_bytes(), site.blobs.path(kept.record.base).read_bytes()
    planted = [fitted[i : i + 48] for i in range(0, len(fitted) - 48, 48) if fitted[i : i + 48] not in base]
    assert len(planted) > 100
    elsewhere = [p for p in site.home.rglob("*") if p.is_file() and site.adapter_store.folder not in p.parents]
    assert elsewhere
    assert not any(piece in path.read_bytes() for path in elsewhere for piece in planted)
    assert not site.blobs.has(kept.record.file)


def test_labels_that_turn_against_it_send_it_back(site: Site):
    name = site.tuner.tune("digits", method="full").kept.record.name
    lifecycle = AdapterLifecycle(site.tuner, site.data)
    site.label(slice(200, 400), adapter=name)
    assert "probation is over" in lifecycle.look()[0]
    site.label(slice(0, 400), adapter=name, by_hub=True)
    (told,) = lifecycle.look()
    assert "labels against it" in told
    assert site.model_slots.adapter is None


def test_a_head_is_no_step_on_from_it(site: Site):
    site.tuner.tune("digits", method="lora")
    with pytest.raises(NotAdaptable, match="whole fitted model"):
        site.tuner.tune("digits")


def test_a_second_one_must_beat_the_first(site: Site):
    site.tuner.tune("digits", method="lora")
    with pytest.raises(GateClosed):
        site.tuner.tune("digits", method="lora")


def test_a_site_without_torch_is_told_what_to_install(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TrainMissing, match="torch"):
        site.tuner.tune("digits", method="lora")
    assert [*site.adapter_store.folder.iterdir()] == []


def test_the_time_allowed_ends_it(site: Site):
    with pytest.raises(FitTooLong):
        site.tuner.tune("digits", method="full", limit_s=0.05)
    assert site.model_slots.adapter is None


def test_a_package_whose_anchors_come_without_inputs_is_refused(tmp_path: Path):
    site = a_site(tmp_path / "home", packed_adaptable(tmp_path / "bare", anchor_inputs=False))
    with pytest.raises(NotAdaptable, match="forgets"):
        site.tuner.tune("digits", method="lora")

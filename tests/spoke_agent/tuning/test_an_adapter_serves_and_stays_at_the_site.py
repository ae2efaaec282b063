from pathlib import Path

import numpy as np
import pytest

from hub.train.corruptions import turn
from hub.train.datasets import digits
from model_formats.core.types import digest_of_file
from model_formats.package import ImageLayout
from model_formats.runtimes.select import open_session
from spoke_agent.adapters.errors import AdapterUnknown, GateClosed, NotAdaptable, TooFewLabels
from spoke_agent.adapters.store import AdapterStore
from spoke_agent.daemon.erasure import Scope, erase
from spoke_agent.data.crypto import load_site_key
from spoke_agent.data.store import DataStore, RowBatch
from spoke_agent.server_api.messages import AdapterState, ModelState, ReconcileAnswer
from spoke_agent.site.slots import ModelSlots, Slot, Slots, read_slots, write_slots
from spoke_agent.tuning.adapter_lifecycle import AdapterLifecycle
from spoke_agent.tuning.tuner import Tuner
from sync.core.clock import ManualClock
from sync.trust.errors import EnvelopeRefused
from sync.trust.keys import device_signer
from tests.samples.adaptable import features, hub_head, packed_adaptable

Packed = tuple[ImageLayout, str]


class Server:
    """Says that it follows, or that it cannot."""

    def __init__(self) -> None:
        self.calls, self.loads = 0, True

    def reconcile(self) -> ReconcileAnswer:
        self.calls += 1
        state = AdapterState(name="any", file="sha256:" + "0" * 64, loaded=self.loads, detail="" if self.loads else "no memory")
        return ReconcileAnswer(models={"digits": ModelState(adapter=state)})


class Site:
    """A spoke's home with one served version and labelled, turned digits."""

    def __init__(self, home: Path, package: Packed) -> None:
        home.mkdir()
        self.home, self.clock, self.signer, self.server = home, ManualClock(), device_signer(), Server()
        self.blobs, self.index = package
        write_slots(home / "slots.json", Slots(models={"digits": ModelSlots(champion=self.slot(self.index))}))
        self.data = DataStore(home / "data.db", load_site_key(home), now=lambda: self.clock.now().timestamp())
        self.adapter_store = AdapterStore(home / "adapters", signer=self.signer, key=self.signer.public_key)
        self.tuner = Tuner(
            home, blobs=self.blobs, data=self.data, adapter_store=self.adapter_store, clock=self.clock, server=self.server
        )
        self.number = 0

    def slot(self, index: str, version: int = 1) -> Slot:
        return Slot(version=version, index=index, variant="onnx-fp32")

    def label(self, rows: slice, *, degrees: float = 35, shuffled: bool = False, adapter: str = "", by_hub: bool = False) -> None:
        share = digits().sites["frankfurt"].take(np.arange(400)[rows])
        images = turn(share.inputs["image"], degrees) if degrees else share.inputs["image"]
        labels = np.random.default_rng(1).permutation(share.labels) if shuffled else share.labels
        if by_hub:
            labels = (features(images) @ hub_head().weight + hub_head().bias).argmax(axis=1)
        ids = [f"{self.number}-{i}" for i in range(len(images))]
        self.number += 1
        times = np.full(len(images), self.clock.now().timestamp())
        scores = np.zeros((len(images), 10), np.float32)
        self.data.append(RowBatch("digits", 1, self.index, ids, times, {"image": images}, {"logits": scores}, adapter=adapter))
        self.data.label_rows({i: float(v) for i, v in zip(ids, labels, strict=True)})

    @property
    def model_slots(self) -> ModelSlots:
        return read_slots(self.home / "slots.json").models["digits"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed_adaptable(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed_adaptable(tmp_path_factory.mktemp("second"), version=2, seed=2)


@pytest.fixture
def site(tmp_path: Path, first: Packed) -> Site:
    found = Site(tmp_path / "home", first)
    found.label(slice(0, 200))
    return found


def test_tuning_puts_a_signed_adapter_into_the_slots_and_the_base_is_untouched(site: Site):
    base = site.blobs.path(site.tuner.base_of(site.slot(site.index)))
    before = digest_of_file(base)
    outcome = site.tuner.tune("digits")
    record = outcome.kept.record
    assert outcome.serving
    assert site.model_slots.adapter == record.slot.replace(probation=True)
    assert record.rows == record.shadow.rows == 200
    assert 20 < record.shadow.changed < 180
    assert record.base == before == digest_of_file(base)
    assert record.gate.after > record.gate.before + 0.2


def test_onnx_runtime_with_the_adapter_gives_what_was_tested(site: Site):
    kept = site.tuner.tune("digits").kept
    session = open_session(site.blobs.path(kept.record.base))
    images = turn(digits().sites["clinic"].inputs["image"], 35)
    adapted = session.run({"image": images}, ["logits"], session.load_adapter(str(kept.file), "a"))[0]
    own, features = session.run({"image": images}, ["logits", "features"])
    head = kept.head()
    assert np.allclose(adapted, features @ head.weight + head.bias, atol=1e-3)
    labels = digits().sites["clinic"].labels
    assert (adapted.argmax(axis=1) == labels).mean() > (own.argmax(axis=1) == labels).mean() + 0.2


def test_shuffled_labels_change_nothing(tmp_path: Path, first: Packed):
    site = Site(tmp_path / "home", first)
    site.label(slice(0, 200), shuffled=True)
    with pytest.raises(GateClosed, match="held-out rows"):
        site.tuner.tune("digits")
    assert site.model_slots.adapter is None
    assert site.adapter_store.all() == []


def test_without_labels_there_is_nothing_to_tune(tmp_path: Path, first: Packed):
    with pytest.raises(TooFewLabels, match="0 usable"):
        Site(tmp_path / "home", first).tuner.tune("digits")


def test_an_author_may_forbid_learning_at_a_site(tmp_path: Path):
    site = Site(tmp_path / "home", packed_adaptable(tmp_path / "closed", learning="none"))
    site.label(slice(0, 200))
    with pytest.raises(NotAdaptable, match="no learning"):
        site.tuner.tune("digits")


def test_when_the_server_cannot_load_it_what_was_there_comes_back(site: Site):
    site.server.loads = False
    with pytest.raises(AdapterUnknown, match="no memory"):
        site.tuner.tune("digits")
    assert site.model_slots.adapter is None


def test_a_second_tuning_must_beat_the_first(site: Site):
    site.tuner.tune("digits")
    with pytest.raises(GateClosed):
        site.tuner.tune("digits")  # the same rows again: nothing is gained


def test_an_adapter_of_another_base_is_not_used(site: Site, second: Packed):
    name = site.tuner.tune("digits").kept.record.name
    other, index = second
    tuner = Tuner(site.home, blobs=other, data=site.data, adapter_store=site.adapter_store, clock=site.clock, server=site.server)
    write_slots(site.home / "slots.json", Slots(models={"digits": ModelSlots(champion=site.slot(index, 2))}))
    with pytest.raises(AdapterUnknown, match="not what is served"):
        tuner.use("digits", name)


def test_a_changed_adapter_file_is_not_used(site: Site):
    kept = site.tuner.tune("digits").kept
    site.tuner.use("digits", None)
    kept.file.write_bytes(bytes(b ^ 1 for b in kept.file.read_bytes()))
    with pytest.raises(AdapterUnknown, match="changed"):
        site.tuner.use("digits", kept.record.name)


def test_a_record_of_another_device_is_refused(site: Site):
    site.tuner.tune("digits")
    stranger = AdapterStore(site.home / "adapters", signer=device_signer(), key=device_signer().public_key)
    with pytest.raises(EnvelopeRefused):
        stranger.all()


def test_erasing_an_adapter_takes_it_out_of_the_slots_and_off_the_disk(site: Site):
    name = site.tuner.tune("digits").kept.record.name
    site.tuner.erase(name)
    assert site.model_slots.adapter is None
    assert site.adapter_store.all() == []
    with pytest.raises(AdapterUnknown):
        site.tuner.erase(name)


def test_erasing_a_row_retires_the_adapter_that_learned_from_it(site: Site):
    name = site.tuner.tune("digits").kept.record.name
    record = erase(site.home, site.data, Scope(("0-7",)), derived=site.tuner, clock=site.clock, signer=site.signer)
    assert record.adapters == (name,)
    assert record.rows == 1
    (fresh,) = record.retrained
    assert site.model_slots.adapter is not None
    assert site.model_slots.adapter.name == fresh
    kept = site.adapter_store.get(fresh).record
    assert (kept.origin, kept.rows) == ("erasure", 199)


def test_erasing_all_rows_retires_the_adapter_and_leaves_nothing_to_retrain_on(site: Site):
    name = site.tuner.tune("digits").kept.record.name
    record = erase(site.home, site.data, Scope(everything=True), derived=site.tuner, clock=site.clock, signer=site.signer)
    assert (record.adapters, record.retrained) == ((name,), ())
    assert site.model_slots.adapter is None
    assert site.adapter_store.all() == []


def test_an_adapter_that_labels_turn_against_retreats(site: Site):
    name = site.tuner.tune("digits").kept.record.name
    lifecycle = AdapterLifecycle(site.tuner, site.data)
    assert lifecycle.look() == []
    site.label(slice(200, 400), adapter=name, by_hub=True)  # from now on the hub's head is right wherever they differ
    (told,) = lifecycle.look()
    assert "labels against it" in told
    assert site.model_slots.adapter is None


def test_an_adapter_that_helps_stays_and_is_out_of_probation_when_labels_have_confirmed_it(site: Site):
    name = site.tuner.tune("digits").kept.record.name
    lifecycle = AdapterLifecycle(site.tuner, site.data)
    site.label(slice(200, 250), adapter=name)
    assert lifecycle.look() == []
    assert site.model_slots.adapter is not None
    assert site.model_slots.adapter.probation
    site.label(slice(250, 400), adapter=name)
    (told,) = lifecycle.look()
    assert "probation is over" in told
    assert site.model_slots.adapter.name == name
    assert not site.model_slots.adapter.probation


def test_in_probation_two_dozen_labels_are_enough_to_send_it_back(site: Site):
    name = site.tuner.tune("digits").kept.record.name
    site.label(slice(200, 224), adapter=name, by_hub=True)
    (told,) = AdapterLifecycle(site.tuner, site.data).look()
    assert "labels against it" in told
    assert site.model_slots.adapter is None


def test_what_gives_no_number_to_rows_that_callers_sent_never_answers(site: Site):
    trunk = site.tuner.trunk(site.slot(site.index))
    with pytest.raises(GateClosed, match="in shadow"):
        site.tuner._shadow("digits", trunk, lambda inputs: np.full((len(inputs["image"]), 10), np.nan))


def test_callers_who_send_what_no_model_can_answer_stop_no_adapter(site: Site):
    images = np.full((3, 1, 8, 8), np.nan, np.float32)
    times = np.full(3, site.clock.now().timestamp())
    scores = {"logits": np.zeros((3, 10), np.float32)}
    site.data.append(RowBatch("digits", 1, site.index, ["x", "y", "z"], times, {"image": images}, scores))
    assert site.tuner.tune("digits").kept.record.shadow.rows == 200


def test_a_new_base_gets_its_own_fit(site: Site, second: Packed):
    first = site.tuner.tune("digits").kept.record
    other, index = second
    tuner = Tuner(site.home, blobs=other, data=site.data, adapter_store=site.adapter_store, clock=site.clock, server=site.server)
    slot = tuner.refit("digits", site.slot(index, 2))
    assert slot is not None
    assert slot.base != first.base
    write_slots(site.home / "slots.json", Slots(models={"digits": ModelSlots(champion=site.slot(index, 2), adapter=first.slot)}))
    (told,) = AdapterLifecycle(tuner, site.data).look()
    assert "refitted" in told
    assert site.model_slots.adapter == slot.replace(probation=True)

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from spoke_agent.data.crypto import SiteKey, load_site_key
from spoke_agent.data.errors import BatchInvalid, DataKeyLost, LabelRefused, StoreDamaged
from spoke_agent.data.store import DataLimits, DataStore, RowBatch, open_data

INDEX = "sha256:" + "1" * 64


def batch(rows: int, *, ids: list[str] | None = None, at: float = 1000.0, classes: int = 10, model: str = "digits") -> RowBatch:
    rng = np.random.default_rng(rows)
    logits = rng.random((rows, classes), np.float32)
    inputs = {"image": rng.random((rows, 1, 8, 8), np.float32)}
    names = ids or [f"r{at}-{i}" for i in range(rows)]
    return RowBatch(model, 1, INDEX, names, np.full(rows, at), inputs, {"logits": logits})


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    return DataStore(tmp_path / "data.db", load_site_key(tmp_path), now=lambda: 1000.0)


def test_rows_come_back_as_they_went_in(store: DataStore):
    given = batch(5)
    store.append(given)
    (found,) = store.batches("digits")
    assert np.array_equal(found.inputs["image"], given.inputs["image"])
    assert np.array_equal(found.outputs["logits"], given.outputs["logits"])
    assert found.index == INDEX
    assert np.isnan(found.labels).all()


def test_reading_after_a_cursor_gives_each_batch_once(store: DataStore):
    store.append(batch(3))
    (first,) = store.batches("digits")
    store.append(batch(4))
    assert [b.rows for b in store.batches("digits", after=first.id)] == [4]
    assert store.count("digits", index=INDEX, after=first.id) == 4


def test_the_file_shows_neither_values_nor_request_ids(tmp_path: Path, store: DataStore):
    rows = batch(2, ids=["patient-4711", "patient-4712"])
    rows.inputs["image"][:] = np.frombuffer(b"SECR", np.float32)[0]
    store.append(rows)
    store.label("patient-4711", 3)
    store.label("not-seen-yet", 3)
    raw = b"".join(path.read_bytes() for path in tmp_path.glob("data.db*"))
    assert b"SECRSECR" not in raw
    assert b"patient" not in raw
    assert b"not-seen" not in raw
    assert (tmp_path / "data.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "identity" / "site.key").stat().st_mode & 0o777 == 0o600


def test_another_key_does_not_open_the_store(tmp_path: Path, store: DataStore):
    store.append(batch(2))
    (tmp_path / "identity" / "site.key").write_bytes(bytes(32))
    with pytest.raises(DataKeyLost, match="another site key"):
        open_data(tmp_path)


def test_a_lost_key_is_not_made_anew_over_old_rows(tmp_path: Path, store: DataStore):
    store.append(batch(2))
    (tmp_path / "identity" / "site.key").unlink()
    with pytest.raises(DataKeyLost, match="missing"):
        open_data(tmp_path)


def test_two_processes_that_both_come_first_agree_on_one_key(tmp_path: Path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_site_key(tmp_path).secret, range(16)))
    assert len(set(keys)) == 1
    assert [p.name for p in (tmp_path / "identity").iterdir()] == ["site.key"]


def test_a_batch_moved_to_another_model_is_seen(tmp_path: Path, store: DataStore):
    store.append(batch(2))
    store._connection.execute("UPDATE batches SET model = 'other'")
    with pytest.raises(StoreDamaged):
        list(store.batches("other"))


def test_what_does_not_fit_together_is_refused(store: DataStore):
    with pytest.raises(BatchInvalid, match="request_ids"):
        store.append(batch(3, ids=["a"]))
    assert store.count("digits") == 0


def test_a_label_finds_its_row_and_counts(store: DataStore):
    given = batch(4, ids=["a", "b", "b", "c"])
    right = given.outputs["logits"].argmax(axis=1)
    store.append(given)
    assert store.label("a", int(right[0]))
    assert store.label("b", [int(right[1]), (int(right[2]) + 1) % 10])
    assert store.labelled_accuracy("digits", INDEX) == (3, 2)
    assert store.labelled_accuracy("digits", INDEX, since=1000.5) == (0, 0)
    assert store.labelled_accuracy("digits", "sha256:" + "2" * 64) == (0, 0)


def test_a_label_that_comes_before_its_row_waits_for_it(store: DataStore):
    assert not store.label("early", 4)
    store.append(batch(1, ids=["early"]))
    (found,) = store.labelled("digits")
    assert found.labels.tolist() == [4.0]


def test_many_labels_at_once_are_the_same_as_one_by_one(store: DataStore):
    store.append(batch(3, ids=["a", "b", "c"]))
    assert store.label_rows({"a": 1, "c": 2, "unknown": 3}) == 2
    (found,) = store.labelled("digits")
    assert found.labels.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("label", [10, -1, 2.5, float("nan"), float("inf")])
def test_a_label_of_no_class_is_refused_and_changes_nothing(store: DataStore, label: float):
    store.append(batch(1, ids=["a"]))
    with pytest.raises(LabelRefused):
        store.label("a", label)
    assert store.labelled_accuracy("digits", INDEX) == (0, 0)


def test_too_many_labels_for_a_request_are_refused(store: DataStore):
    store.append(batch(2, ids=["a", "a"]))
    with pytest.raises(LabelRefused, match="2 rows"):
        store.label("a", [1, 2, 3])


def test_numbers_may_label_a_regression(store: DataStore):
    store.append(batch(1, ids=["a"], classes=1))
    store.label("a", 2.75)
    (found,) = store.labelled("digits")
    assert found.labels.tolist() == [2.75]
    assert store.labelled_accuracy("digits", INDEX) == (0, 0)


def test_old_rows_go_but_their_labelled_ones_stay_as_a_sample(tmp_path: Path):
    store = DataStore(
        tmp_path / "data.db", load_site_key(tmp_path), limits=DataLimits(max_rows=10, max_kept_rows=3), now=lambda: 1e3
    )
    store.append(batch(6, ids=list("abcdef")))
    store.label("b", 1)
    store.label("e", 2)
    store.append(batch(8))
    assert [b.rows for b in store.batches("digits")] == [8]
    (kept,) = [b for b in store.batches("digits", kept=True) if b.kept]
    assert kept.labels.tolist() == [1.0, 2.0]
    assert store.labelled_accuracy("digits", INDEX)[0] == 2


def test_the_sample_of_the_past_stays_bounded(tmp_path: Path):
    store = DataStore(
        tmp_path / "data.db", load_site_key(tmp_path), limits=DataLimits(max_rows=4, max_kept_rows=6), now=lambda: 1e3
    )
    for i in range(12):
        store.append(batch(3, ids=[f"{i}-a", f"{i}-b", f"{i}-c"]))
        store.label(f"{i}-a", 1)
        store.label(f"{i}-b", 1)
    kept = [b for b in store.batches("digits", kept=True) if b.kept]
    assert 0 < sum(b.rows for b in kept) <= 6


def test_the_sample_of_the_past_is_fair_to_the_old_and_the_new(tmp_path: Path):
    limits = DataLimits(max_rows=2, max_kept_rows=40)
    store = DataStore(tmp_path / "data.db", load_site_key(tmp_path), limits=limits, now=lambda: 1e3)
    for n in range(400):
        store.append(batch(1, ids=[f"r{n}"]))
        store.label(f"r{n}", n % 10)
    origins = np.array([row[0] for row in store._all("SELECT origin FROM batches WHERE kept = 1 ORDER BY origin")])
    assert len(origins) == 40
    assert 0.3 < (origins / origins.max()).mean() < 0.7  # 4 sigma of forty even draws; dropping at random each time gave .9


def test_rows_older_than_the_limit_go(tmp_path: Path):
    now = [1000.0]
    store = DataStore(tmp_path / "data.db", load_site_key(tmp_path), limits=DataLimits(max_age_days=1), now=lambda: now[0])
    store.append(batch(3))
    now[0] += 2 * 86400
    store.append(batch(2, at=now[0]))
    assert [b.rows for b in store.batches("digits")] == [2]


DAY = 86400.0


def ten_days(tmp_path: Path, now: list[float]) -> DataStore:
    """A store that keeps rows for ten days by the clock `now[0]`; opened again, the same one."""
    limits = DataLimits(max_age_days=10)
    return DataStore(tmp_path / "data.db", load_site_key(tmp_path), limits=limits, now=lambda: now[0])


def steady(store: DataStore, now: list[float], days: float) -> None:
    """A row every six hours."""
    end = now[0] + days * DAY
    while now[0] < end:
        now[0] = min(end, now[0] + DAY / 4)
        store.append(batch(1, at=now[0]))


def test_a_clock_that_jumps_erases_nothing_until_it_has_stood_a_day(tmp_path: Path):
    now = [1.7e9]
    store = ten_days(tmp_path, now)
    steady(store, now, 2)
    right = now[0]
    held = len(list(store.batches("digits")))

    now[0] = right + 400 * DAY  # a clock a year ahead, put right within the day
    store.append(batch(1, at=now[0]))
    steady(store, now, 0.75)
    now[0] = right + DAY
    store.append(batch(1, at=now[0]))
    assert len(list(store.batches("digits"))) == held + 5

    store = ten_days(tmp_path, now)
    steady(store, now, 1.5)  # the right time is believed again, and what was dated a year ahead ages from now on
    steady(store, now, 11)
    assert max(b.times.max() for b in store.batches("digits")) <= now[0]
    assert min(b.times.min() for b in store.batches("digits")) >= now[0] - 10.3 * DAY


def test_after_months_off_what_is_too_old_goes_a_day_of_work_later(tmp_path: Path):
    now = [1.7e9]
    store = ten_days(tmp_path, now)
    steady(store, now, 2)
    old = now[0]
    now[0] += 60 * DAY
    store.append(batch(1, at=now[0]))
    steady(store, now, 0.75)
    assert any(b.times.min() <= old for b in store.batches("digits"))
    steady(store, now, 0.5)
    assert all(b.times.min() > old for b in store.batches("digits"))


def test_what_people_bring_for_a_fit_stays_apart_from_what_callers_sent(tmp_path: Path):
    limits = DataLimits(max_rows=6, max_kept_rows=100)
    store = DataStore(tmp_path / "data.db", load_site_key(tmp_path), limits=limits, now=lambda: 1e3)
    ids = ["a", "b", "c"]
    brought, asked = batch(3, ids=ids), batch(3, ids=["x", "y", "z"])
    store.append(replace(brought, purpose="tuning"))
    store.append(asked)
    store.label_rows(dict.fromkeys([*ids, "x"], 1.0))
    store.append(batch(2))  # what was brought falls out of the window; its labelled rows stay
    assert store.labels("digits", INDEX) == 4
    assert store.labelled_accuracy("digits", INDEX)[0] == 1
    assert {b.purpose for b in store.labelled("digits")} == {"serving", "tuning"}
    assert [b.purpose for b in store.batches("digits", kept=True, purpose="tuning")] == ["tuning"]
    assert sum(b.rows for b in store.latest("digits", limit=100)) == store.count("digits")


def test_text_is_kept_as_bytes(store: DataStore):
    texts = np.array(["guten Tag", b"bye"], dtype=object)
    store.append(RowBatch("m", 1, INDEX, ["a", "b"], np.array([1e3, 1e3]), {"text": texts}, {"y": np.zeros((2, 2), np.float32)}))
    (found,) = store.batches("m")
    assert found.inputs["text"].tolist() == [b"guten Tag", b"bye"]


def test_the_summary_counts_by_version(store: DataStore):
    store.append(batch(3, ids=["a", "b", "c"]))
    store.label("a", 1)
    (row,) = store.summary()
    assert (row["model"], row["rows"], row["labelled"]) == ("digits", 3, 1)


def test_a_key_is_never_printed():
    secret = bytes(range(32))
    assert repr(SiteKey(secret)) == f"{SiteKey(secret)}" == "SiteKey(...)"

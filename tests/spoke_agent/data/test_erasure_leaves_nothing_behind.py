from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from spoke_agent.adapters.store import Retired
from spoke_agent.daemon.erasure import ErasureRecord, Scope, erase
from spoke_agent.data.crypto import load_site_key
from spoke_agent.data.store import DataLimits, DataStore, RowBatch
from sync.core.clock import ManualClock
from sync.trust.dsse import unseal
from sync.trust.keys import device_signer

INDEX = "sha256:" + "1" * 64


class Adapters:
    """Remembers what it was asked to forget."""

    def __init__(self) -> None:
        self.asked: list[frozenset[int]] = []

    def forget(self, batches: frozenset[int]) -> list[Retired]:
        self.asked.append(batches)
        return [Retired("digits-1-a1", "digits", answered=True)] if batches else []

    def renew(self, model: str) -> str | None:
        return f"{model}-1-a2"


def store(home: Path, **limits: int) -> DataStore:
    return DataStore(home / "data.db", load_site_key(home), limits=DataLimits(**limits), now=lambda: 1e3)


def rows(ids: list[str], at: float = 1000.0) -> RowBatch:
    values = np.arange(len(ids), dtype=np.float32)[:, None] + 0.5
    return RowBatch(
        "digits", 1, INDEX, ids, np.full(len(ids), at), {"x": values}, {"y": np.eye(3, dtype=np.float32)[[0] * len(ids)]}
    )


def test_one_subject_goes_and_the_others_keep_their_labels(tmp_path: Path):
    data = store(tmp_path)
    data.append(rows(["a", "b", "b", "c"]))
    data.label("a", 0)
    data.label("c", 2)
    assert data.erase(request_ids=["b"]) == 2
    (left,) = data.batches("digits")
    assert left.inputs["x"].ravel().tolist() == [0.5, 3.5]
    assert left.labels.tolist() == [0.0, 2.0]
    assert not data.label("b", 1)  # unknown now
    assert data.label("c", 1)  # and c still finds its row
    (left,) = data.batches("digits")
    assert left.labels.tolist() == [0.0, 1.0]


def test_what_would_be_erased_is_counted_and_stays(tmp_path: Path):
    data = store(tmp_path)
    data.append(rows(["a", "b", "b", "c"]))
    data.append(rows(["d"], at=2000.0))
    data.label("b", 0)
    assert data.would_erase(request_ids=["b", "nobody"]) == 2
    assert data.would_erase(before=1500.0) == 4
    assert data.would_erase(everything=True) == 5
    assert data.count("digits") == 5
    assert data.erase(request_ids=["b"]) == 2


def test_a_subject_whose_row_outlived_its_batch_goes_too(tmp_path: Path):
    data = store(tmp_path, max_rows=3)
    data.append(rows(["a", "b", "c"]))
    data.label("b", 1)
    data.append(rows(["d", "e", "f"]))
    assert data.touched(request_ids=["b"]) == frozenset({1})  # the batch that adapters know
    assert data.erase(request_ids=["b"]) == 1
    assert data.labelled_accuracy("digits", INDEX) == (0, 0)


def test_rows_before_a_moment_go_from_the_middle_of_a_batch(tmp_path: Path):
    data = store(tmp_path)
    both = rows(["old", "new"])
    data.append(RowBatch("digits", 1, INDEX, ["old", "new"], np.array([10.0, 20.0]), both.inputs, both.outputs))
    assert data.erase(before=15.0) == 1
    assert data.label("new", 2)
    (left,) = data.batches("digits")
    assert left.times.tolist() == [20.0]
    assert left.labels.tolist() == [2.0]


@pytest.mark.parametrize("scope", [Scope(("a",)), Scope(before=datetime(2030, 1, 1, tzinfo=UTC)), Scope(everything=True)])
def test_erasure_retires_what_was_made_from_the_rows_and_leaves_a_signed_record(tmp_path: Path, scope: Scope):
    data, adapters, signer = store(tmp_path), Adapters(), device_signer()
    data.append(rows(["a", "b"]))
    record = erase(tmp_path, data, scope, derived=adapters, clock=ManualClock(), signer=signer)
    assert adapters.asked == [frozenset({1})]
    assert record.rows == (1 if scope.request_ids else 2)
    assert record.adapters == ("digits-1-a1",)
    assert record.retrained == ("digits-1-a2",)
    (file,) = (tmp_path / "erasures").iterdir()
    assert unseal(file.read_bytes(), [signer.public_key], ErasureRecord) == record


def test_erased_bytes_are_not_in_the_file(tmp_path: Path):
    data = store(tmp_path)
    data.append(rows(["a"]))
    (sealed,) = data._connection.execute("SELECT sealed FROM batches").fetchone()
    data.erase(everything=True)
    data.close()
    assert sealed[:32] not in b"".join(path.read_bytes() for path in tmp_path.glob("data.db*"))


def test_erasing_resets_drift_sums_that_counted_the_rows(tmp_path: Path):
    from spoke_agent.drift.detector import Detector
    from spoke_agent.drift.state import DriftState, Sums, read_state, write_state

    data = store(tmp_path)
    data.append(rows(["a"]))
    state = DriftState(model="digits", version=1, index=INDEX, detector=Detector(budget=100), sums=Sums(rows=5, counts=((5,),)))
    write_state(tmp_path / "drift" / "digits.json", state)
    record = erase(tmp_path, data, Scope(everything=True), derived=Adapters(), clock=ManualClock(), signer=device_signer())
    found = read_state(tmp_path / "drift" / "digits.json")
    assert record.drift_sums_reset
    assert found is not None
    assert found.sums.rows == 0

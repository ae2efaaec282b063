from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields

from model_formats.core.document import DocumentRefused, Value
from sync.core.types import Reason, Regime
from sync.protocol import egress
from sync.protocol.egress import (
    DriftHist,
    DriftVerdict,
    EgressRecord,
    FeatureCounts,
    MaskedKey,
    MaskedSum,
    Ops,
    PerfEstimate,
    RffMean,
)

DIGEST = "sha256:" + "ab" * 32
BODIES = (DriftVerdict, DriftHist, RffMean, PerfEstimate, MaskedKey, MaskedSum, Ops)


def record(body: Any, **changes: Any) -> EgressRecord:
    at = datetime(2026, 3, 1, 12, 15, tzinfo=UTC)
    fields: dict[str, Any] = {"site": "dubai", "spoke": "main", "sequence": 1, "previous": None, "policy": DIGEST}
    fields |= {"model": "digits", "version": 1, "index": DIGEST, "start": at, "end": at, "body": body}
    return EgressRecord(**(fields | changes))


verdicts = st.builds(
    DriftVerdict,
    edges=st.just(DIGEST),
    level=st.sampled_from(["quiet", "watch", "alarm"]),
    evidence=st.integers(0, 12),
    budget=st.integers(1, 10_000),
    p=st.integers(0, 12),
    joint=st.integers(0, 12),
    windows=st.integers(1, 1000),
    rows=st.sampled_from(egress.ROW_STEPS),
)
hists = st.builds(
    DriftHist,
    edges=st.just(DIGEST),
    rounded_to=st.integers(1, 100),
    features=st.lists(
        st.builds(
            FeatureCounts,
            feature=st.integers(0, 4095),
            counts=st.lists(st.one_of(st.just(0), st.integers(10, 10**9)), min_size=1, max_size=50).map(tuple),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
)


@given(st.one_of(verdicts, hists))
def test_every_record_comes_back_from_its_bytes(body: Any):
    assert EgressRecord.parse(record(body).canonical()) == record(body)


def _leaves(body: type[Value]) -> Iterator[tuple[str, Any, Any]]:
    """Every scalar type in a model's fields, through unions, tuples, annotations and nested models."""
    for field in fields(body):
        for leaf, metadata in _scalars(field.type):
            if isinstance(leaf, type) and issubclass(leaf, Value):
                yield from _leaves(leaf)
            else:
                yield f"{body.__name__}.{field.name}", leaf, metadata


def _scalars(annotation: Any, metadata: Any = ()) -> Iterator[tuple[Any, Any]]:
    if get_origin(annotation) is Literal:
        return
    if hasattr(annotation, "__metadata__"):
        yield from _scalars(get_args(annotation)[0], annotation.__metadata__)
        return
    inner = [a for a in get_args(annotation) if isinstance(a, type) or get_args(a)]
    if not inner:
        yield annotation, metadata
    for part in inner:
        yield from _scalars(part)


@pytest.mark.parametrize("body", BODIES)
def test_no_body_has_a_field_for_text_or_floats(body: type[Value]):
    seen = 0
    for where, leaf, metadata in _leaves(body):
        seen += 1
        assert leaf in (int, bool, Reason) or (leaf is str and "sha256" in str(metadata)), where
    assert seen


def test_a_cell_that_counts_few_rows_cannot_be_written_or_read():
    with pytest.raises(ValueError, match="fewer than 10"):
        FeatureCounts(feature=0, counts=(0, 9, 100))
    good = record(DriftHist(edges=DIGEST, rounded_to=1, features=(FeatureCounts(feature=0, counts=(0, 10, 100)),)))
    with pytest.raises(DocumentRefused, match="fewer than 10"):
        EgressRecord.parse(good.canonical().replace(b"[0,10,100]", b"[0,7,103]"))


@pytest.mark.parametrize(
    "extra",
    [b'"note":"the patient in room 4"', b'"rows_sample":[[1,2,3]]', b'"embedding":[0.1]', b'"minimum":3'],
)
def test_unknown_fields_are_refused(extra: bytes):
    body = record(Ops(version=(0, 1, 0), disk_free_percent=1, memory_free_percent=1, uptime_hours=1))
    with pytest.raises(DocumentRefused):
        EgressRecord.parse(body.canonical().replace(b'{"body":{', b'{"body":{' + extra + b",", 1))


def test_times_are_coarse():
    with pytest.raises(ValueError, match="quarter"):
        record(
            Ops(version=(0, 1, 0), disk_free_percent=1, memory_free_percent=1, uptime_hours=1),
            start=datetime(2026, 3, 1, 12, 14, 59, tzinfo=UTC),
        )


def test_a_bare_number_without_interval_order_is_refused():
    with pytest.raises(ValueError, match="low <= estimate"):
        PerfEstimate(method="labels", estimate=50, low=60, high=70, valid=True, rows=200)


def test_every_regime_has_a_floor_and_health_lets_only_verdicts_out():
    assert set(egress.FLOORS) == set(get_args(Regime))
    assert egress.FLOORS["ae-health"] == {"ops", "drift_verdict"}
    assert all(kinds <= set(egress.KINDS) for kinds in egress.FLOORS.values())


def test_the_buckets_round_down():
    assert [egress.rows_at_least(n) for n in (0, 199, 200, 5400, 10**9)] == [0, 0, 200, 5000, 1_000_000]
    assert [egress.p_bucket(p) for p in (1.0, 0.2, 0.1, 1e-3, 0.0)] == [0, 0, 1, 3, 12]
